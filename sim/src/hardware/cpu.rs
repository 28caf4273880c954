//! A machine whose ranks are threads on CPU cores: what `moeplan calibrate` measures.

use super::HardwareError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Measured points, ascending: `[x, y]`. Between them y is interpolated on logarithmic scales; past
/// either end it stays in proportion to x.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve(pub Vec<[f64; 2]>);

impl Curve {
    /// y at `x`; 0 at 0.
    pub fn at(&self, x: f64) -> f64 {
        let points = &self.0;
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return 0.0;
        };
        if x <= 0.0 {
            return 0.0;
        }
        if x <= first[0] {
            return first[1] * x / first[0];
        }
        if x >= last[0] {
            return last[1] * x / last[0];
        }
        let above = points.partition_point(|point| point[0] < x);
        let ([x0, y0], [x1, y1]) = (points[above - 1], points[above]);
        let share = (x / x0).ln() / (x1 / x0).ln();
        (y0.ln() + share * (y1 / y0).ln()).exp()
    }

    fn check(&self, path: &str) -> Result<(), HardwareError> {
        let ascending = self.0.windows(2).all(|pair| pair[0][0] < pair[1][0]);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let sound = self.0.iter().all(|[x, y]| positive(*x) && positive(*y));
        if ascending && sound && !self.0.is_empty() {
            return Ok(());
        }
        let message = "expected one or more [x, y] above 0 with x ascending";
        Err(HardwareError::at(path, message))
    }
}

/// Time of one product of (m,k) by (k,n) on one core, a sum of what its parts take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GemmTerms {
    /// One call, microseconds.
    pub call_us: f64,
    /// One multiply-add, picoseconds.
    pub multiply_add_ps: f64,
    /// One element of the left factor, picoseconds.
    pub left_ps: f64,
    /// One element of the right factor, picoseconds.
    pub right_ps: f64,
    /// One element of the result, picoseconds.
    pub result_ps: f64,
}

impl GemmTerms {
    /// The terms' amounts for one product, in the order of the fields.
    pub fn amounts(m: f64, n: f64, k: f64) -> [f64; 5] {
        [1.0, m * n * k, m * k, k * n, m * n]
    }

    /// Microseconds of one product.
    pub fn microseconds(&self, m: f64, n: f64, k: f64) -> f64 {
        let [calls, multiply_adds, left, right, result] = GemmTerms::amounts(m, n, k);
        let picoseconds = self.multiply_add_ps * multiply_adds
            + self.left_ps * left
            + self.right_ps * right
            + self.result_ps * result;
        self.call_us * calls + picoseconds * 1e-6
    }
}

/// Products by which factor is read along its columns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CpuGemm {
    /// Neither.
    pub plain: GemmTerms,
    /// The right one.
    pub right_transposed: GemmTerms,
    /// The left one.
    pub left_transposed: GemmTerms,
}

/// Constants of a CPU whose threads are ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CpuParams {
    /// Cores that ranks share.
    pub cores: u64,
    /// Time around one operation, microseconds, by number of ranks.
    pub launch_us: Curve,
    /// Time that the ranks of a collective need to meet and part, microseconds, by number of ranks.
    pub meeting_us: Curve,
    /// Slow-down where ranks share cores, by number of ranks: a step over what its operations took
    /// each for itself.
    pub sharing: Curve,
    /// Matrix products.
    pub gemm: CpuGemm,
    /// Passes over memory, microseconds by bytes read and written.
    pub passes: BTreeMap<String, Curve>,
    /// Speed of a product beside a copy on another core, 1 being undisturbed.
    pub gemm_beside_copy: f64,
    /// Speed of a copy beside a product on another core.
    pub copy_beside_gemm: f64,
}

impl CpuParams {
    /// Checks all ranges.
    pub(super) fn check(&self) -> Result<(), HardwareError> {
        if !(1..=1 << 16).contains(&self.cores) {
            let message = format!("expected 1 to {}, found {}", 1 << 16, self.cores);
            return Err(HardwareError::at("cpu.cores", message));
        }
        self.launch_us.check("cpu.launch-us")?;
        self.meeting_us.check("cpu.meeting-us")?;
        self.sharing.check("cpu.sharing")?;
        for (name, curve) in &self.passes {
            curve.check(&format!("cpu.passes.{name}"))?;
        }
        let terms = [
            ("plain", &self.gemm.plain),
            ("right-transposed", &self.gemm.right_transposed),
            ("left-transposed", &self.gemm.left_transposed),
        ];
        for (name, terms) in terms {
            let all = [
                terms.call_us,
                terms.multiply_add_ps,
                terms.left_ps,
                terms.right_ps,
                terms.result_ps,
            ];
            if all.iter().any(|term| !(term.is_finite() && *term >= 0.0)) {
                let message = "expected terms of 0 or more";
                return Err(HardwareError::at(format!("cpu.gemm.{name}"), message));
            }
        }
        for (path, share) in [
            ("cpu.gemm-beside-copy", self.gemm_beside_copy),
            ("cpu.copy-beside-gemm", self.copy_beside_gemm),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                let message = format!("expected a share above 0, up to 1, found {share}");
                return Err(HardwareError::at(path, message));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_pass_through_their_points_and_stay_in_proportion_beyond() {
        let curve = Curve(vec![[10.0, 2.0], [1000.0, 20.0]]);
        for (x, y) in [
            (10.0, 2.0),
            (1000.0, 20.0),
            (5.0, 1.0),
            (2000.0, 40.0),
            (0.0, 0.0),
        ] {
            assert!((curve.at(x) - y).abs() < 1e-9, "{x}: {}", curve.at(x));
        }
        let between = curve.at(100.0);
        assert!((between - 40.0_f64.sqrt()).abs() < 1e-9, "{between}");
    }
}
