// A NormalFloat of 2 bits.
const CODEBOOK = array<f32, 4>(-1.0, 0.0, 0.43581816, 1.0);
