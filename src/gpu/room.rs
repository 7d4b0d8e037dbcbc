//! Whether memory that is counted beforehand will be there.

use super::{DeviceKind, Gpu};
use crate::{Error, Result};

impl Gpu {
    /// For work that was counted on a dry device ([`GpuOptions::dry`](super::GpuOptions::dry)). What a card's own memory has free no
    /// backend tells wgpu; of the system's memory, which other devices use, Linux tells. Errors: OutOfMemory where less than `bytes`
    /// is available.
    pub fn expect_room(&self, what: &str, bytes: u64) -> Result<()> {
        let shared = matches!(self.caps().kind, DeviceKind::Cpu | DeviceKind::Integrated);
        match std::fs::read_to_string("/proc/meminfo").ok().filter(|_| shared).as_deref().and_then(available) {
            Some(available) if available < bytes => Err(Error::OutOfMemory {
                what: what.to_owned(),
                needed: Some(bytes),
                available: Some(available),
                remedy: "close other programs, lower `max_seq_length` or `batch_size`, turn on `gradient_checkpointing`, or \
                         quantize to 4 bits"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// Bytes that programs can still get without swapping, of the text of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    #[test]
    fn what_linux_tells_is_read() {
        let text = "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    2048000 kB\n";
        assert_eq!(available(text), Some(2_048_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
        let gpu = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
        gpu.expect_room("nothing", 0).unwrap();
    }
}
