#pragma once

/// Before a function: compiled once for each width of vector registers; the loader picks one for the processor. The result must not depend
/// on the choice: write sums in a fixed order, and compile the folder with -ffp-contract=off, so that no target fuses a product with a sum.
#if !defined(__x86_64__) || defined(__clang__) || defined(__SANITIZE_THREAD__)
#define HCSMOE_FOR_EACH_VECTOR_WIDTH
#elif __GNUC__ >= 12
#define HCSMOE_FOR_EACH_VECTOR_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // GCC 11 knows no levels of the architecture
#define HCSMOE_FOR_EACH_VECTOR_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
