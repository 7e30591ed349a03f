//! Gives the shared library a name of its own, so that programs find it in any folder that their loader looks into.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libofa_c.so");
    }
}
