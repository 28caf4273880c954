//! Compiles the kernels for the CPU where the `host` feature asks for it. Nothing else needs a C++
//! compiler; where there is none, `host_build` stays unset and tests of the host build say SKIPPED.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(host_build)");
    #[cfg(feature = "host")]
    host::compile();
}

#[cfg(feature = "host")]
mod host {
    use std::fmt::Write as _;
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    /// Number types: suffix of entry points, `MOE_DTYPE`.
    const REALS: [(&str, u8); 3] = [("f32", 0), ("f16", 1), ("bf16", 2)];

    pub(crate) fn compile() {
        for path in ["host", "src/cuda"] {
            println!("cargo::rerun-if-changed={path}");
        }
        println!("cargo::rerun-if-env-changed=MOEPLAN_HOST_UCONTEXT");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let mut base = cc::Build::new();
        base.cpp(true)
            .std("c++17")
            .opt_level(2)
            .debug(false)
            .flag("-fno-exceptions")
            .flag("-fno-rtti")
            .flag("-fno-strict-aliasing")
            // One rounding an operation, as the oracle; fma is written out where it is meant.
            .flag("-ffp-contract=off")
            .include("host");
        if env::var_os("MOEPLAN_HOST_UCONTEXT").is_some() {
            base.define("SIM_UCONTEXT", None);
        }
        if base.try_get_compiler().is_err() {
            println!("cargo::warning=no C++ compiler: the kernels are not built for the host");
            return;
        }
        // Every load and store calls a hook; sim.cpp has its own, so the sanitizer's library is not linked.
        // (-fsanitize=kernel-address was tried first: it leaves out the store of a load-add-store.)
        let mut checked = base.clone();
        checked.flag("-fsanitize=thread");
        for (name, dtype) in REALS {
            let dir = out.join(name);
            fs::create_dir_all(&dir).expect("OUT_DIR can be written");
            fs::write(dir.join("kernels.inc"), unit(name)).expect("OUT_DIR can be written");
            let built = checked
                .clone()
                .include(&dir)
                .include("src/cuda")
                .define("MOE_DTYPE", dtype.to_string().as_str())
                .warnings(false)
                .file("host/kernels.cpp")
                .try_compile(&format!("moeplan_kernels_{name}"));
            if let Err(error) = built {
                println!("cargo::warning=the kernels are not built for the host: {error}");
                return;
            }
        }
        base.warnings(true)
            .file("host/sim.cpp")
            .compile("moeplan_sim");
        println!("cargo::rustc-cfg=host_build");
    }

    /// One translation unit: the kernels of a number type (the plain ones with fp32) and their table.
    fn unit(real: &str) -> String {
        let mut includes = String::from("#include \"common.cuh\"\n");
        let mut table = String::new();
        for path in sources(Path::new("src/cuda")) {
            let text = fs::read_to_string(&path).expect("a listed source can be read");
            let name = path
                .file_name()
                .expect("a file has a name")
                .to_string_lossy()
                .into_owned();
            let real_entries = entries(&text, "REAL_KERNEL(");
            let plain_entries = entries(&text, "PLAIN_KERNEL(");
            if !real_entries.is_empty() || real == "f32" {
                let _ = writeln!(includes, "#include \"{name}\"");
            }
            for entry in real_entries {
                let _ = writeln!(
                    table,
                    "    sim::Entry<{entry}_{real}>::make(\"{entry}_{real}\"),"
                );
            }
            for entry in plain_entries.iter().filter(|_| real == "f32") {
                let _ = writeln!(table, "    sim::Entry<{entry}>::make(\"{entry}\"),");
            }
        }
        format!(
            "{includes}static const sim::Kernel table[] = {{\n{table}}};\n\
             extern \"C\" const sim::Kernel* moeplan_kernels_{real}(size_t* count) {{\n    \
             *count = sizeof table / sizeof *table;\n    return table;\n}}\n"
        )
    }

    fn sources(dir: &Path) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)
            .expect("src/cuda exists")
            .map(|entry| entry.expect("src/cuda can be listed").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .collect();
        paths.sort();
        // Kernels that are wrong on purpose, for the tests of the host build itself.
        paths.push("host/faults.cu".into());
        paths
    }

    fn entries<'a>(text: &'a str, marker: &str) -> Vec<&'a str> {
        text.split(marker)
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .collect()
    }
}
