//! Floats as they lie in files.

use crate::{DType, Error, Result};
use half::{bf16, f16};

/// f32 numbers as the bytes of a tensor of floats. Errors: Unsupported for other dtypes; Config, with the tensor's name, for a
/// finite number that the dtype has no room for.
pub(super) fn narrow(values: &[f32], name: &str, dtype: DType) -> Result<Vec<u8>> {
    let most = match dtype {
        DType::F16 => f16::MAX.to_f32(),
        DType::BF16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    };
    let rounded = |v: f32| if dtype == DType::F16 { f16::from_f32(v).to_f32() } else { bf16::from_f32(v).to_f32() };
    if let Some(i) = values.iter().position(|&v| v.is_finite() && v.abs() > most && rounded(v).is_infinite()) {
        let message = format!("number {i} is {}, more than the {most} that {} can hold", values[i], dtype);
        return Err(Error::config(name, message));
    }
    Ok(match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F64 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        other => return Err(Error::unsupported(format!("dtype of {}", name), other, "floats")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_halves_cannot_hold_are_refused_by_name() {
        let narrow = |values: &[f32], dtype| super::narrow(values, "model.norm.weight", dtype);
        let bytes = narrow(&[1.0, -65_519.0, f32::INFINITY], DType::F16).unwrap();
        let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
        assert_eq!(
            halves,
            [f16::ONE, f16::MIN, f16::INFINITY],
            "what rounds to the largest stays, as does what was infinite"
        );
        for (dtype, large) in [(DType::F16, -65_520.0), (DType::BF16, f32::MAX)] {
            let error = narrow(&[1.0, large, 0.0], dtype).unwrap_err().to_string();
            assert!(error.contains("model.norm.weight") && error.contains(&format!("number 1 is {large}")), "{error}");
        }
        assert!(narrow(&[f32::MAX, 70_000.0, 0.0], DType::F32).is_ok());
        assert!(narrow(&[7e4, 0.0, 0.0], DType::BF16).is_ok());
    }
}
