#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]
use moeplan_sim::cost::gemm::GemmShape;
use moeplan_sim::spec::DType;
fn main() {
    let hw = moeplan_sim::hardware::builtin("nd-a100-v4-80gb").unwrap();
    for d in [DType::Fp16, DType::Tf32] {
        for (b, m, n, k, w) in [
            (2u64, 16384u64, 2048u64, 2048u64, 2u64),
            (4096, 8, 2048, 2048, 2),
            (512, 64, 2048, 2048, 2),
            (2, 65536, 4096, 4096, 2),
            (2, 4096, 4096, 65536, 2),
        ] {
            let s = GemmShape::batched(b, m, n, k, d).sharing(w);
            let t = hw.gpu.gemm.estimate(&s).time;
            println!(
                "{d} {b}x{m}x{n}x{k}: {t} {:.1} TFLOPS",
                s.flops() / t.as_secs_f64() / 1e12
            );
        }
    }
}
