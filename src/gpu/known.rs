//! What is known of drivers: symptoms that others reported, and what helps. One entry, one section of `docs/devices.md`.

use super::{Adapter, Caps, DeviceKind};

/// PCI's numbers of vendors.
const AMD: u32 = 0x1002;
const NVIDIA: u32 = 0x10de;
const INTEL: u32 = 0x8086;

/// One thing that is known of a family of drivers.
#[derive(Debug)]
pub struct Known {
    /// The section of `docs/devices.md`.
    pub section: &'static str,
    /// What happens, and with which versions.
    pub symptom: &'static str,
    /// What to do, or what fourbit does already.
    pub remedy: &'static str,
    applies: fn(&Adapter) -> bool,
}

/// Everything that is known. Versions are those of the reports; `docs/devices.md` names these.
const KNOWN: &[Known] = &[
    Known {
        section: "dx12-fxc",
        symptom: "shaders are compiled by FXC: shader model 5.1, without packed dot products",
        remedy: "put dxcompiler.dll beside the program, or build with the feature static-dxc",
        applies: |a| a.compiler.starts_with("FXC"),
    },
    Known {
        section: "amd-windows-vulkan",
        symptom: "Vulkan drivers around 26.3.1 end the program while devices are listed",
        remedy: "WGPU_BACKEND=dx12, with which no Vulkan driver is opened",
        applies: |a| cfg!(windows) && a.vendor == AMD,
    },
    Known {
        section: "intel-windows",
        symptom: "drivers before 32.0.101.8860 lose the device with cooperative matrices",
        remedy: "fourbit uses none; update the driver before you report a lost device",
        applies: |a| cfg!(windows) && a.vendor == INTEL,
    },
    Known {
        section: "nvidia-bar",
        symptom: "many host-visible allocations fragment the memory of cards with resizable BAR",
        remedy: "fourbit stages 16 MiB at most; with other programs on the card, bound its share with FOURBIT_MEMORY_LIMIT",
        applies: |a| a.vendor == NVIDIA && a.caps.kind == DeviceKind::Discrete,
    },
    Known {
        section: "metal-timestamps",
        symptom: "on macOS 26 with Metal 4 all timestamps are zero",
        remedy: "fourbit then measures by the host's clock; `bench` says what it could not measure",
        applies: |a| a.caps.backend == "metal",
    },
    Known {
        section: "two-gib-buffers",
        symptom: "buffers end at 2 GiB",
        remedy: "larger tensors are split over several buffers; nothing to do",
        applies: |a| a.caps.max_buffer <= 1 << 31,
    },
    Known {
        section: "watchdog",
        symptom: "the system resets a GPU that works on one submit for about two seconds",
        remedy: "submits are cut at a tenth of a second as soon as kernels have been measured; close other programs that use the GPU",
        applies: |a| is_gpu(&a.caps) && a.caps.backend != "metal",
    },
    Known {
        section: "lavapipe",
        symptom: "a driver that runs on the processor",
        remedy: "Mesa 25 is faster than Debian 12's Mesa 22; scripts/setup.sh unpacks it",
        applies: |a| a.caps.kind == DeviceKind::Cpu && a.caps.name.contains("llvmpipe"),
    },
    Known {
        section: "swiftshader",
        symptom: "a driver that runs on the processor, slower than lavapipe",
        remedy: "for tests alone",
        applies: |a| a.caps.name.contains("SwiftShader"),
    },
    Known {
        section: "warp",
        symptom: "Windows' own driver on the processor",
        remedy: "a GPU's driver is missing or was reset; install the vendor's",
        applies: |a| a.caps.name.contains("Basic Render"),
    },
];

fn is_gpu(caps: &Caps) -> bool {
    matches!(caps.kind, DeviceKind::Discrete | DeviceKind::Integrated)
}

/// What is known of an adapter's driver.
pub fn known(adapter: &Adapter) -> Vec<&'static Known> {
    KNOWN.iter().filter(|known| (known.applies)(adapter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_its_section_for_users() {
        let page = include_str!("../../docs/devices.md");
        for known in KNOWN {
            assert!(page.contains(&format!("### `{}`", known.section)), "docs/devices.md lacks {}", known.section);
        }
        let sections = page.matches("### `").count();
        assert_eq!(sections, KNOWN.len(), "docs/devices.md has a section that the table lacks");
    }
}
