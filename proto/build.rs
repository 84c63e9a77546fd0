//! Compiles the contract with a compiler written in Rust, so that nobody needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=switchyard.proto");
    let descriptors = protox::compile(["switchyard.proto"], ["."])?;
    tonic_prost_build::configure()
        // Sorted maps: the same content encodes to the same bytes, and so has the same version.
        .btree_map(".")
        // Shared between all agents that are sent the same.
        .bytes(".switchyard.v1.Update.upserts")
        .bytes(".switchyard.v1.Update.evidence")
        .bytes(".switchyard.v1.ShareReply.evidence")
        .compile_fds(descriptors)?;
    Ok(())
}
