use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(venus_mqtt::cli::main(std::env::args_os()))
}
