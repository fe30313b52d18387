// The passes over a model's gradient. Each block takes one chunk of one layer, so that one launch covers all layers.
//
// There is no barrier, no shared memory and no warp intrinsic in here, only strided loops and atomics: compiled as plain C++, a loop
// over blocks and threads gives the same results, and tests/gpu_on_host.py runs this very source without a GPU. Contraction to FMA
// is off, and nothing flushes denormals. Bits are those of |v|: as integers they order like magnitudes, 0x7f800000 and above are
// infinity and NaN.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define INFINITE 0x7f800000u

__device__ inline u32 magnitude(float v) {
    union { float f; u32 u; } bits;
    bits.f = v;
    return bits.u & 0x7fffffffu;
}

// residual += gradient; whatever reaches its layer's cut is a candidate, in no particular order: slot[layer] is where the layer's
// candidates begin, capacity[layer] how many fit, found[layer] how many there were. bad[0] counts what is not finite.
__global__ void accumulate_and_collect(float* residual, const float* gradient, const i64* chunk_layer, const i64* chunk_start,
                                       const i64* chunk_stop, const u32* cut, const i64* slot, const u64* capacity, u64* found,
                                       i64* candidate_index, u32* candidate_bits, u64* bad) {
    const i64 layer = chunk_layer[blockIdx.x], stop = chunk_stop[blockIdx.x];
    const u32 least = cut[layer];
    for (i64 i = chunk_start[blockIdx.x] + threadIdx.x; i < stop; i += blockDim.x) {
        const float v = residual[i] + gradient[i];
        residual[i] = v;
        const u32 bits = magnitude(v);
        if (bits >= least || bits >= INFINITE) {
            if (bits >= INFINITE) atomicAdd(bad, 1ull);
            const u64 place = atomicAdd(&found[layer], 1ull);
            if (place < capacity[layer]) {
                candidate_index[slot[layer] + (i64)place] = i;
                candidate_bits[slot[layer] + (i64)place] = bits;
            }
        }
    }
}

// The same for v that stays as it is.
__global__ void collect(const u64* v, const i64* begin, const i64* chunk_layer, const i64* chunk_start, const i64* chunk_stop,
                        const u32* cut, const i64* slot, const u64* capacity, u64* found, i64* candidate_index,
                        u32* candidate_bits) {
    const i64 layer = chunk_layer[blockIdx.x], stop = chunk_stop[blockIdx.x];
    const float* values = (const float*)v[layer];
    for (i64 i = chunk_start[blockIdx.x] + threadIdx.x; i < stop; i += blockDim.x) {
        const u32 bits = magnitude(values[i]);
        if (bits >= cut[layer]) {
            const u64 place = atomicAdd(&found[layer], 1ull);
            if (place < capacity[layer]) {
                candidate_index[slot[layer] + (i64)place] = begin[layer] + i;
                candidate_bits[slot[layer] + (i64)place] = bits;
            }
        }
    }
}

// counts[layer, j] += how many magnitudes of a layer reach its threshold j; thresholds as bits (layers × width).
__global__ void count_at_least(const u64* v, const i64* chunk_layer, const i64* chunk_start, const i64* chunk_stop,
                               const u32* threshold, i64 width, u64* counts) {
    const i64 layer = chunk_layer[blockIdx.x], stop = chunk_stop[blockIdx.x];
    const float* values = (const float*)v[layer];
    for (i64 j = 0; j < width; j++) {
        u64 own = 0;
        const u32 least = threshold[layer * width + j];
        for (i64 i = chunk_start[blockIdx.x] + threadIdx.x; i < stop; i += blockDim.x) own += magnitude(values[i]) >= least;
        if (own) atomicAdd(&counts[layer * width + j], own);
    }
}

// One level of a radix search for a k-th largest magnitude: histogram[layer, digit] of the digit at `shift` (mask: its width), among
// magnitudes from least[layer] up whose higher bits are prefix[layer].
__global__ void digit_histogram(const u64* v, const i64* chunk_layer, const i64* chunk_start, const i64* chunk_stop,
                                const u32* least, const u32* prefix, i64 shift, i64 digits, i64 higher, u64* histogram) {
    const i64 layer = chunk_layer[blockIdx.x], stop = chunk_stop[blockIdx.x];
    const float* values = (const float*)v[layer];
    for (i64 i = chunk_start[blockIdx.x] + threadIdx.x; i < stop; i += blockDim.x) {
        const u32 bits = magnitude(values[i]);
        if (bits >= least[layer] && (bits >> higher) == prefix[layer])
            atomicAdd(&histogram[layer * digits + ((bits >> shift) & (u32)(digits - 1))], 1ull);
    }
}
