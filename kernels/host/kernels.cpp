// The kernels' own text, compiled for the host once a number type. `build.rs` writes the list of entry points,
// kernels.inc, from the `.cu` files.
#include "cuda_sim.h"
#include "kernels.inc"
