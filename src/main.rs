//! The program `ofa`.

fn main() -> std::process::ExitCode {
    ofa::main()
}
