//! The command `vm-remap`: everything it does lies in the library of this package.

fn main() -> std::process::ExitCode {
    vm_remap_cli::cli::main()
}
