//! The command line: one file per subcommand. Results go to stdout, everything else to stderr.

mod adapter;
mod adapter_args;
mod args;
mod bench;
mod cache;
mod calibrate;
mod calibration;
mod compare;
mod devices;
mod embedded;
mod evaluate;
mod export;
mod finetune;
mod flags;
mod generate;
mod interrupt;
mod measure;
mod merge;
mod output;
mod parameters;
mod plan;
mod plot;
mod probe;
mod progress;
mod qat;
mod quantize;
mod report;
mod roofline;
mod shape;
mod verify;

use args::Global;
use clap::{Parser, Subcommand};
use fourbit::Error;
use std::process::ExitCode;

/// Quantize, fine-tune (QLoRA) and run Llama-family models on any GPU that Vulkan, Metal or DX12 reaches.
#[derive(Parser)]
#[command(name = "fourbit", version, after_help = ENVIRONMENT)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

const ENVIRONMENT: &str = "\
Environment:
  FOURBIT_DEVICE=N|NAME       as --device
  WGPU_BACKEND=NAMES          as --backend
  WGPU_DX12_COMPILER=NAME     auto, dxc (dxcompiler.dll), staticdxc or fxc
  FOURBIT_MEMORY_LIMIT=BYTES  as --memory-budget
  FOURBIT_CACHE_DIR=DIR       where compiled kernels and measured choices are kept; empty: nowhere
  FOURBIT_SUBGROUPS=0|1       without subgroup operations, or with them on GPUs too
  FOURBIT_LONG_LOADS=0        without loads of 64-bit integers
  FOURBIT_BASELINE=1          ask for WebGPU's default limits instead of the adapter's own
  FOURBIT_CHECKED=1           compile shaders with bounds checks
  RUST_LOG=info               log to stderr

Exit status: 0 done, 1 failed, 2 wrong usage; 130, 143, 129 ended by SIGINT (Ctrl-C), SIGTERM, SIGHUP.";

#[derive(Subcommand)]
enum Command {
    Devices(devices::Devices),
    Plan(plan::Plan),
    Parameters(parameters::Parameters),
    Quantize(quantize::Quantize),
    Finetune(Box<finetune::Finetune>),
    Generate(generate::Generate),
    Evaluate(evaluate::Evaluate),
    Merge(Box<merge::Merge>),
    Adapter(adapter::Adapter),
    Calibrate(calibrate::Calibrate),
    Compare(compare::Compare),
    Verify(verify::Verify),
    Bench(bench::Bench),
}

/// A fault of the device that the library catches and returns as an error is reported once, as that error.
fn hush_caught_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match fourbit::gpu::is_catching() {
        true => log::debug!("{info}"),
        false => tell(info),
    }));
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    hush_caught_panics();
    output::log();
    interrupt::watch();
    let global = &cli.global;
    let left = interrupt::left;
    let result = match &cli.command {
        Command::Devices(command) => command.run(global),
        Command::Plan(command) => command.run(global),
        Command::Parameters(command) => command.run(global),
        Command::Quantize(command) => left("nothing was written", command.run(global)),
        Command::Finetune(command) => left("nothing was trained", command.run(global)),
        Command::Generate(command) => left("no prompt was read to its end", command.run(global)),
        Command::Evaluate(command) => left("the text was not read to its end", command.run(global)),
        Command::Merge(command) => left("nothing was written", command.run(global)),
        Command::Adapter(command) => command.run(global),
        Command::Calibrate(command) => left("nothing was written", command.run(global)),
        Command::Compare(command) => command.run(global),
        Command::Verify(command) => command.run(global),
        Command::Bench(command) => left("nothing was measured", command.run(global)),
    };
    global.close();
    if output::has_failed() {
        return ExitCode::FAILURE;
    }
    match result {
        Ok(()) => interrupt::status().map_or(ExitCode::SUCCESS, ExitCode::from),
        Err(error @ Error::Interrupted(_)) => {
            output::note(format_args!("{error}"));
            interrupt::status().map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            output::note(format_args!("error: {}", flags::told(error)));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }
}
