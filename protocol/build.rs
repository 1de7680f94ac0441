//! Generates the ttrpc service of `agent.proto` and the messages of `runtimeoptions.proto` and `runc.proto`.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=agent.proto");
    println!("cargo::rerun-if-changed=runtimeoptions.proto");
    println!("cargo::rerun-if-changed=runc.proto");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["agent.proto", "runtimeoptions.proto", "runc.proto"])
        .include(".")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // Inner attributes and inner documentation are refused by `include!`.
    for name in ["agent.rs", "agent_ttrpc.rs", "runtimeoptions.rs", "runc.rs"] {
        let path = Path::new(&out).join(name);
        let text = fs::read_to_string(&path)?;
        let kept: Vec<&str> = text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
        fs::write(&path, kept.join("\n"))?;
    }
    Ok(())
}
