//! Sets `cfg(loom)` only for this package, so that all others are compiled once.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
