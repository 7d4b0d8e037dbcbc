//! Parameters of kernels, named as their shaders name them.

/// A kernel's parameters, beside its buffers: a struct of words that follow the engine's `group_base` and `group_end` in the
/// shader's `Params`. [`Program`](super::Program)s are not built where names, order or size differ from the shader's.
pub trait Params: bytemuck::NoUninit {
    /// The fields, in order.
    const NAMES: &'static [&'static str];
}

/// Declares structs of [`Params`].
macro_rules! params {
    ($(#[$attribute:meta])* $vis:vis struct $name:ident {
        $($(#[$of_field:meta])* $field_vis:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::NoUninit)]
        $vis struct $name {
            $($(#[$of_field])* $field_vis $field: $type,)*
        }

        impl $crate::graph::Params for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

pub(crate) use params;

#[cfg(test)]
mod tests {
    use crate::{
        DType,
        gpu::{Gpu, GpuOptions, Kernel},
        graph::{Graph, Params},
    };

    params! {
        struct Right { len: u32, scale: f32, cols: u32, }
    }
    params! {
        struct Turned { scale: f32, len: u32, cols: u32, }
    }
    params! {
        struct Short { len: u32, scale: f32, }
    }

    fn build<P: Params>(params: &P) -> crate::Result<()> {
        let gpu = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
        let mut g = Graph::new(&gpu);
        let [a, b, y] = ["a", "b", "y"].map(|what| gpu.zeros(what, [4], DType::F32).unwrap()).map(|t| g.import(&t));
        g.dispatch(Kernel::new("elementwise", "add"), params, &[&a, &b, &y], 1, 8.0)?;
        g.run().map(drop)
    }

    #[test]
    fn parameters_other_than_the_shaders_are_refused() {
        build(&Right { len: 4, scale: 1.0, cols: 0 }).unwrap();
        let turned = build(&Turned { scale: 1.0, len: 4, cols: 0 }).unwrap_err().to_string();
        assert!(turned.contains(r#"["group_base", "group_end", "len", "scale", "cols"] of 20 bytes"#), "{turned}");
        assert!(turned.contains(r#"["scale", "len", "cols"]"#), "{turned}");
        let short = build(&Short { len: 4, scale: 1.0 }).unwrap_err().to_string();
        assert!(short.contains("16 bytes"), "{short}");
    }
}
