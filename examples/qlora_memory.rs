//! What the memory of a QLoRA step is made of, for models without their files: counted by the code that would run, on a device that only
//! counts.
//!
//! `cargo run --release --example qlora_memory [-- SHAPE TOKENS]`, with a shape of `fourbit plan --help`

use fourbit::{
    Error, Gpu, LoraConfig, Model, Result, TrainConfig, Trainer, arch::Architecture, gpu::GpuOptions, quant::Scheme,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let shape = arguments.next().unwrap_or_else(|| "llama-2-7b".to_owned());
    let tokens = arguments.next().map_or(Ok(512), |n| n.parse()).map_err(|_| Error::config("TOKENS", "is a number"))?;
    let arch = Architecture::of_shape(&shape)?;
    println!("{shape}, one row of {tokens} tokens, LoRA of rank 16 on every linear layer:\n");
    let head = ["weights", "linear GiB", "others GiB", "adapter", "gradients", "moments", "activations", "peak GiB"];
    println!("{:12} {}", head[0], head[1..].iter().map(|name| format!("{name:>12}")).collect::<String>());

    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let mut peaks = Vec::new();
    for (name, checkpointing) in
        [("bf16", true), ("int8-g64", true), ("nf4", true), ("nf4-dq", true), ("nf4-dq", false)]
    {
        let gpu = Gpu::open(&GpuOptions { dry: true, ..GpuOptions::from_env()? })?;
        let scheme: Scheme = name.parse()?;
        let mut model = Model::of_shape(&gpu, &arch, scheme, 1)?;
        let linear: u64 = model.linears().map(|linear| linear.base.bytes()).sum();
        // Embedding, head and norms stay in 16 and 32 bits.
        let others = gpu.allocated_bytes() - linear;
        model.add_adapter(LoraConfig::default(), true)?;
        // Values, gradients and two moments of AdamW: four numbers in f32 for each one that is trained.
        let trained = 4 * model.store().parameters() as u64;
        let config =
            TrainConfig { max_seq_length: tokens, gradient_checkpointing: checkpointing, ..TrainConfig::default() };
        let trainer = Trainer::new(model, config)?;
        let parts = [linear, others, trained, trained, 2 * trained, trainer.activation_bytes(), gpu.peak_bytes()];
        let name = if checkpointing { name.to_owned() } else { format!("{name} *") };
        println!("{name:12} {}", parts.map(|bytes| format!("{:12.3}", gib(bytes))).concat());
        peaks.push((scheme.code_bits(), linear, gpu.peak_bytes()));
    }
    println!("\n* without gradient checkpointing: every block keeps all that its backward pass reads");

    // Four bits and their scales take little more than a quarter of sixteen bits.
    let [(_, bf16, _), .., (bits, nf4, with), (_, _, without)] = peaks[..] else { unreachable!("five rows") };
    println!("{bits} bits: {:.3} of the bytes of bf16", nf4 as f64 / bf16 as f64);
    assert!((0.25..0.3).contains(&(nf4 as f64 / bf16 as f64)) && with < without);
    Ok(())
}
