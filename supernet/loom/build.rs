//! Sets `cfg(loom)` for this package alone: everything else is compiled once, as always.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
