// A NormalFloat of 3 bits.
const CODEBOOK = array<f32, 8>(-1.0, -0.5350227, -0.24693143, 0.0, 0.18333748, 0.38199395, 0.6229857, 1.0);
