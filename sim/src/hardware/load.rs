//! Reading hardware files: built-in fragments, `extends`, and checks.

use super::Hardware;
use crate::cost::nccl::{Nccl, NcclError};
use toml::{Table, Value};

/// Built-in presets by name.
pub const PRESETS: &[(&str, &str)] = &[
    (
        "nd-a100-v4-80gb",
        include_str!("presets/nd-a100-v4-80gb.toml"),
    ),
    (
        "nd-a100-v4-40gb",
        include_str!("presets/nd-a100-v4-40gb.toml"),
    ),
    ("dgx-a100", include_str!("presets/dgx-a100.toml")),
];

/// Fragments that presets and users' files can extend.
const FRAGMENTS: &[(&str, &str)] = &[
    ("a100-gemm", include_str!("fitted/a100_gemm.toml")),
    ("a100-nccl", include_str!("fitted/a100_nccl.toml")),
    ("a100-layer", include_str!("fitted/a100_layer.toml")),
    ("a100-model", include_str!("fitted/a100_model.toml")),
    ("cpu-base", include_str!("fitted/cpu_base.toml")),
];

/// A hardware file that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}{message}", if .path.is_empty() { String::new() } else { format!("`{}`: ", .path) })]
pub struct HardwareError {
    /// Path of the field, e.g. `gpu.memory-gib`; empty where there is none.
    pub path: String,
    /// What was expected and found.
    pub message: String,
    /// Bytes of the text the error is at, where the parser says.
    pub span: Option<std::ops::Range<usize>>,
}

impl HardwareError {
    pub(super) fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        HardwareError {
            path: path.into(),
            message: message.into(),
            span: None,
        }
    }
}

/// The preset `name`.
///
/// # Errors
/// No such preset.
pub fn builtin(name: &str) -> Result<Hardware, HardwareError> {
    match PRESETS.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => Hardware::from_toml(text),
        None => {
            let known: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
            Err(HardwareError::at(
                "cluster",
                format!(
                    "expected a file or one of {}, found `{name}`",
                    known.join(", ")
                ),
            ))
        }
    }
}

impl Hardware {
    /// Reads a hardware file. `extends = ["nd-a100-v4-80gb"]` starts from a preset or fragment; what
    /// the file states itself wins.
    ///
    /// # Errors
    /// Syntax, unknown or missing fields, values out of range.
    pub fn from_toml(text: &str) -> Result<Hardware, HardwareError> {
        let table = merged(text, 0)?;
        let hardware: Hardware =
            serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
                HardwareError::at(error.path().to_string(), error.inner().message())
            })?;
        hardware.check()?;
        Ok(hardware)
    }

    fn check(&self) -> Result<(), HardwareError> {
        if let Some(cpu) = &self.cpu {
            cpu.check()?;
        }
        let positive = [
            ("gpu.memory-gib", self.gpu.memory_gib),
            ("gpu.hbm-gb-per-s", self.gpu.hbm_gb_per_s),
            (
                "network.congestion.half-nodes",
                self.network.congestion.half_nodes,
            ),
            (
                "network.congestion.exponent",
                self.network.congestion.exponent,
            ),
            (
                "network.congestion.peer-limit",
                self.network.congestion.peer_limit,
            ),
        ];
        let contention = &self.gpu.contention;
        let shares = [
            ("gpu.contention.gemm-beside-nic", contention.gemm_beside_nic),
            (
                "gpu.contention.memory-beside-nic",
                contention.memory_beside_nic,
            ),
            (
                "gpu.contention.nic-beside-kernel",
                contention.nic_beside_kernel,
            ),
            (
                "gpu.contention.gemm-beside-nvlink",
                contention.gemm_beside_nvlink,
            ),
            (
                "gpu.contention.memory-beside-nvlink",
                contention.memory_beside_nvlink,
            ),
            (
                "gpu.contention.nvlink-beside-kernel",
                contention.nvlink_beside_kernel,
            ),
            ("software.gemm-efficiency", self.software.gemm_efficiency),
        ];
        for (path, value) in shares {
            if !(value > 0.0 && value <= 1.0) {
                return Err(HardwareError::at(
                    path,
                    format!("expected a share above 0, up to 1, found {value}"),
                ));
            }
        }
        let framework = &self.software.framework;
        let not_negative = [
            (
                "software.framework.forward-passes",
                framework.forward_passes,
            ),
            (
                "software.framework.backward-passes",
                framework.backward_passes,
            ),
            ("software.framework.loss-per-node", framework.loss_per_node),
            ("software.scan-row-ns", self.software.scan_row_ns),
            ("gpu.kernel-us", self.gpu.kernel_us),
            ("host.launch-us", self.host.launch_us),
            ("host.collective-us", self.host.collective_us),
            ("host.peer-us", self.host.peer_us),
            ("host.synchronise-us", self.host.synchronise_us),
            (
                "network.congestion.peer-penalty",
                self.network.congestion.peer_penalty,
            ),
            ("software.reserved-gib", self.software.reserved_gib),
        ];
        for (path, value) in positive {
            if !(value.is_finite() && value > 0.0 && value < 1e9) {
                return Err(HardwareError::at(
                    path,
                    format!("expected a number above 0, found {value}"),
                ));
            }
        }
        for (path, value) in not_negative {
            if !(value.is_finite() && (0.0..1e9).contains(&value)) {
                return Err(HardwareError::at(
                    path,
                    format!("expected 0 or more, found {value}"),
                ));
            }
        }
        let whole = [
            ("node.gpus", self.node.gpus),
            ("network.nodes-per-leaf", self.network.nodes_per_leaf),
            ("network.spines", self.network.spines),
        ];
        for (path, value) in whole {
            if !(1..=1 << 20).contains(&value) {
                return Err(HardwareError::at(
                    path,
                    format!("expected 1 to {}, found {value}", 1 << 20),
                ));
            }
        }
        if !(self.network.oversubscription.is_finite() && self.network.oversubscription >= 1.0) {
            let found = self.network.oversubscription;
            return Err(HardwareError::at(
                "network.oversubscription",
                format!("expected 1 (non-blocking) or more, found {found}"),
            ));
        }
        if let Err(NcclError::Params(problems)) = Nccl::new(self.collectives.clone(), None)
            && let Some(problem) = problems.first()
        {
            let message = format!("expected {}, found {}", problem.expected, problem.found);
            return Err(HardwareError::at(
                format!("collectives.{}", problem.field),
                message,
            ));
        }
        Ok(())
    }
}

/// The table of `text` laid over everything it extends.
fn merged(text: &str, depth: usize) -> Result<Table, HardwareError> {
    let mut own: Table = toml::from_str(text).map_err(|error: toml::de::Error| HardwareError {
        path: String::new(),
        message: error.message().to_string(),
        span: error.span(),
    })?;
    let mut base = Table::new();
    for name in extended(&mut own)? {
        let known = PRESETS
            .iter()
            .chain(FRAGMENTS)
            .find(|(known, _)| *known == name);
        let Some((_, text)) = known else {
            let names: Vec<_> = PRESETS
                .iter()
                .chain(FRAGMENTS)
                .map(|(name, _)| *name)
                .collect();
            return Err(HardwareError::at(
                "extends",
                format!("expected {}, found `{name}`", names.join(", ")),
            ));
        };
        if depth > 4 {
            return Err(HardwareError::at("extends", "expected at most four levels"));
        }
        overlay(&mut base, merged(text, depth + 1)?);
    }
    overlay(&mut base, own);
    Ok(base)
}

fn extended(own: &mut Table) -> Result<Vec<String>, HardwareError> {
    let names = match own.remove("extends") {
        None => return Ok(Vec::new()),
        Some(Value::String(name)) => vec![Value::String(name)],
        Some(Value::Array(names)) => names,
        Some(other) => {
            return Err(HardwareError::at(
                "extends",
                format!("expected names of presets, found {}", other.type_str()),
            ));
        }
    };
    let text = |name: Value| match name {
        Value::String(name) => Ok(name),
        other => Err(HardwareError::at(
            "extends",
            format!("expected names of presets, found {}", other.type_str()),
        )),
    };
    names.into_iter().map(text).collect()
}

/// Lays `over` on `base`: tables merge, everything else is replaced.
fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(prefix: &str, table: &Table, found: &mut Vec<String>) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                Value::Table(inner) => leaves(&path, inner, found),
                _ => found.push(path),
            }
        }
    }

    #[test]
    fn every_constant_of_every_preset_has_a_source() {
        for (name, text) in PRESETS {
            let hardware = builtin(name).unwrap();
            let mut table = merged(text, 0).unwrap();
            table.remove("sources");
            let mut paths = Vec::new();
            leaves("", &table, &mut paths);
            for path in paths {
                let named = path.ends_with("name") || path == "description";
                let mut parts: Vec<&str> = path.split('.').collect();
                let sourced = std::iter::from_fn(|| {
                    let joined = parts.join(".");
                    parts.pop().map(|_| joined)
                })
                .any(|prefix| hardware.sources.contains_key(&prefix));
                assert!(named || sourced, "{name}: `{path}` has no source");
            }
        }
    }

    #[test]
    fn a_file_extends_a_preset_and_wins() {
        let hardware =
            Hardware::from_toml("extends = 'nd-a100-v4-80gb'\n[node]\ngpus = 16").unwrap();
        assert_eq!(hardware.node.gpus, 16);
        assert_eq!(hardware.gpu.name, "A100-SXM4-80GB");
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Hardware::from_toml(text).unwrap_err().to_string();
        let extends = "extends = 'nd-a100-v4-80gb'\n";
        assert!(error("extends = 'h100'").contains("expected nd-a100-v4-80gb"));
        assert!(error(&format!("{extends}[gpu]\nmemory = 1")).contains("unknown field `memory`"));
        assert!(error("name = 'x'").contains("missing field"));
        assert!(error(&format!("{extends}[gpu]\nmemory-gib = -1.0")).contains("gpu.memory-gib"));
        assert!(error(&format!("{extends}[gpu]\nhbm-gb-per-s = nan")).contains("gpu.hbm-gb-per-s"));
        assert!(
            error(&format!("{extends}[network]\noversubscription = 0.5")).contains("non-blocking")
        );
        assert!(error("gpus = [").contains("expected") || !error("gpus = [").is_empty());
    }
}
