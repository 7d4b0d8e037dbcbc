//! A weight back on the host.

use crate::{QuantizedTensor, Result, gpu::Tensor, quant::Packed};

impl QuantizedTensor {
    /// The weight on the host. Waits for the device. Errors: Device, DeviceLost.
    pub fn download(&self) -> Result<Packed> {
        let words = self.scheme().code_words(self.len());
        let mut codes = Vec::with_capacity(words);
        for part in self.parts() {
            codes.extend(part.read::<u32>()?);
        }
        codes.truncate(words);
        let scales = self.scales().map_or(Ok(Vec::new()), Tensor::read::<u32>)?;
        let nested = self.nested().map_or(Ok(Vec::new()), Tensor::read::<f32>)?;
        Packed::new(self.scheme(), self.shape(), codes, scales, nested)
    }

    /// The first codes and scales, at most 4 KiB of each: enough to tell weights apart. Waits for the device. Errors: Device.
    pub(crate) fn head_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for tensor in self.parts().iter().take(1).chain(self.scales()) {
            let words = tensor.slice(0, [tensor.shape().len().min(1024)])?.read::<u32>()?;
            bytes.extend_from_slice(bytemuck::cast_slice(&words));
        }
        Ok(bytes)
    }
}
