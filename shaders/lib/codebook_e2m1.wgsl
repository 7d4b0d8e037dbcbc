// The 4-bit floats E2M1 of MXFP4 and NVFP4.
const CODEBOOK = array<f32, 16>(
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
);
