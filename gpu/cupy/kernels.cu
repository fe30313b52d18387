// The passes over a model's gradient. Each block works on one chunk of one layer, so that one
// launch covers all layers.
//
// A kernel is a sequence of phases: all threads of a block end one phase before any starts the
// next, and only shared memory, and variables with the same value in all threads, outlive a phase.
// So a phase can also be a loop over the threads: compiled as plain C++ this source gives the same
// results, and tests/gpu_on_host.py runs it without a GPU. Contraction to FMA is off. "bits" are
// those of |v|: as integers they are ordered like the magnitudes, and 0x7f800000 and above are
// infinity and NaN. gpu/cupy/device.py sets CHUNK, the most values of a chunk, THREADS and WIDE, the
// most threads of a block, and DIGITS, the most digits of a level of a radix search.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define INFINITE 0x7f800000u
#ifndef PHASE
#define PHASE for (bool once = (__syncthreads(), true); once; once = false)
#endif

// Arithmetic that keeps denormals: CuPy has all code compiled with -ftz=true, which flushes them in
// CUDA C++, but not in instructions that say so themselves.
#ifdef __CUDACC__
#define ROUNDED(name, instruction)                                                      \
    __device__ inline float name(float a, float b) {                                    \
        float result;                                                                   \
        asm(instruction " %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));                \
        return result;                                                                  \
    }
ROUNDED(plus, "add.rn.f32")
ROUNDED(minus, "sub.rn.f32")
ROUNDED(times, "mul.rn.f32")
__device__ inline double widened(float v) {
    double result;
    asm("cvt.f64.f32 %0, %1;" : "=d"(result) : "f"(v));
    return result;
}
#else
__device__ inline float plus(float a, float b) { return a + b; }
__device__ inline float minus(float a, float b) { return a - b; }
__device__ inline float times(float a, float b) { return a * b; }
__device__ inline double widened(float v) { return v; }
#endif

union Bits {
    u32 u;
    float f;
};

// The values start..stop of a layer, at most CHUNK.
struct Chunk {
    i64 layer, start, stop;
};

// A layer's candidates: where they start, how many fit, where those that are chosen go, how many are
// chosen; and where the layer starts.
struct Room {
    i64 slot, size, first, k, start;
};

// Each thread has counted the values that have one of its digits; the last thread's digits are the
// largest. Returns the thread that has counted the rank-th largest value. rank becomes the rank of
// that value among those that this thread has counted.
__device__ inline i64 holder(const i64* sums, i64* rank) {
    i64 thread = blockDim.x - 1;
    while (thread > 0 && *rank > sums[thread]) *rank -= sums[thread--];
    return thread;
}

__device__ inline u32 magnitude(float v) {
    Bits bits;
    bits.f = v;
    return bits.u & 0x7fffffffu;
}

// residual += gradient, if there is one, and collect the candidates: the values that reach their
// layer's cut, in no particular order. A candidate is its index in the residual and, in the lower
// 32 bits, the bits of its magnitude. counts[layer] is their number, including those that do not
// fit; bad[0] is the number of values that are not finite. A block first lists the positions of
// its candidates and then reserves room for all of them at once.
__global__ void collect(float* __restrict__ residual, const float* __restrict__ gradient,
                        const Chunk* __restrict__ chunks, const u32* __restrict__ cuts,
                        const Room* __restrict__ rooms, u64* counts, u64* bad,
                        u64* __restrict__ candidates) {
    __shared__ unsigned short positions[CHUNK];
    __shared__ u32 count;
    __shared__ i64 first;
    const Chunk chunk = chunks[blockIdx.x];
    const Room room = rooms[chunk.layer];
    const u32 cut = cuts[chunk.layer];
    PHASE if (threadIdx.x == 0) count = 0;
    PHASE for (i64 i = chunk.start + threadIdx.x; i < chunk.stop; i += blockDim.x) {
        if (gradient) residual[i] = plus(residual[i], gradient[i]);
        const u32 bits = magnitude(residual[i]);
        if (bits >= INFINITE) atomicAdd(bad, 1ull);
        if (bits >= cut) positions[atomicAdd(&count, 1u)] = (unsigned short)(i - chunk.start);
    }
    PHASE if (threadIdx.x == 0 && count) first = (i64)atomicAdd(&counts[chunk.layer], (u64)count);
    PHASE for (i64 j = threadIdx.x; j < count && first + j < room.size; j += blockDim.x) {
        const i64 i = chunk.start + positions[j];
        candidates[room.slot + first + j] = (u64)i << 32 | magnitude(residual[i]);
    }
}

// Candidates in the order in which they are chosen: by magnitude, then the lower index first.
__device__ inline u64 order(u64 candidate) {
    return candidate << 32 | (u32)~(u32)(candidate >> 32);
}

// A block for each layer: the k largest of its candidates, in no particular order, and the bits of
// the least of them; nothing where there are fewer, or more than fit. A radix search over `order`,
// of which no two are equal: it ends where all that share the digits found so far are chosen.
__global__ void pick(const u64* __restrict__ candidates, const Room* __restrict__ rooms,
                     const u64* __restrict__ counts, u64* __restrict__ chosen,
                     u64* __restrict__ thresholds) {
    __shared__ u32 found[DIGITS], written;
    __shared__ i64 sums[WIDE], rank;
    __shared__ u64 prefix;
    __shared__ bool settled;
    const Room room = rooms[blockIdx.x];
    const u64* __restrict__ own = candidates + room.slot;
    const i64 size = (i64)counts[blockIdx.x];
    if (!room.k || size < room.k || size > room.size) return;
    PHASE if (threadIdx.x == 0) rank = room.k, prefix = 0, written = 0;
    i64 shift = 63;
    do {
        static_assert(DIGITS >= 1 << 11, "a level has up to 11 bits");
        const i64 left = shift > 32 ? shift - 32 : shift, width = left < 11 ? left : 11;
        const i64 digits = 1ll << width, higher = shift;
        const i64 share = (digits + blockDim.x - 1) / blockDim.x;
        shift -= width;
        PHASE for (i64 digit = threadIdx.x; digit < digits; digit += blockDim.x) found[digit] = 0;
        PHASE for (i64 j = threadIdx.x; j < size; j += blockDim.x) {
            const u64 key = order(own[j]);
            if (key >> higher == prefix) atomicAdd(&found[(key >> shift) & (u64)(digits - 1)], 1u);
        }
        PHASE {
            i64 sum = 0;
            const i64 end = (threadIdx.x + 1) * share, stop = end < digits ? end : digits;
            for (i64 digit = threadIdx.x * share; digit < stop; digit++) sum += found[digit];
            sums[threadIdx.x] = sum;
        }
        PHASE if (threadIdx.x == 0) {
            i64 rest = rank;
            const i64 thread = holder(sums, &rest), end = (thread + 1) * share;
            i64 digit = (end < digits ? end : digits) - 1;
            while (digit > 0 && rest > (i64)found[digit]) rest -= (i64)found[digit--];
            rank = rest, prefix = prefix << width | (u64)digit;
            settled = shift <= 32 && rest == (i64)found[digit];
        }
        PHASE;
    } while (!settled && shift > 0);
    const u64 least = prefix << shift;
    PHASE if (threadIdx.x == 0) thresholds[blockIdx.x] = least >> 32;
    PHASE for (i64 j = threadIdx.x; j < size; j += blockDim.x)
        if (order(own[j]) >= least) chosen[room.first + atomicAdd(&written, 1u)] = own[j];
}

// What was chosen, ascending, taken apart: the index in v, the position in its layer, the value.
__global__ void unpack(const u64* __restrict__ chosen, i64 size, const Room* __restrict__ rooms,
                       i64 layers, const float* __restrict__ v, i64* __restrict__ index,
                       i64* __restrict__ positions, float* __restrict__ values) {
    const i64 start = (i64)blockIdx.x * CHUNK, stop = start + CHUNK < size ? start + CHUNK : size;
    PHASE for (i64 i = start + threadIdx.x; i < stop; i += blockDim.x) {
        i64 low = 0, high = layers;
        while (high - low > 1) {
            const i64 middle = (low + high) / 2;
            if (rooms[middle].first <= i) low = middle; else high = middle;
        }
        const i64 at = (i64)(chosen[i] >> 32);
        index[i] = at, positions[i] = at - rooms[low].start, values[i] = v[at];
    }
}

// counts[layer, j] += how many magnitudes of a layer reach its threshold j; thresholds are bits
// (layers × width).
__global__ void count_at_least(const u64* __restrict__ v, const Chunk* __restrict__ chunks,
                               const u32* __restrict__ thresholds, i64 width, u64* counts) {
    __shared__ u32 count;
    const Chunk chunk = chunks[blockIdx.x];
    const float* __restrict__ values = (const float*)v[chunk.layer];
    for (i64 j = chunk.layer * width; j < (chunk.layer + 1) * width; j++) {
        const u32 least = thresholds[j];
        PHASE if (threadIdx.x == 0) count = 0;
        PHASE {
            u32 own = 0;
            for (i64 i = chunk.start + threadIdx.x; i < chunk.stop; i += blockDim.x)
                own += magnitude(values[i]) >= least;
            if (own) atomicAdd(&count, own);
        }
        PHASE if (threadIdx.x == 0 && count) atomicAdd(&counts[j], (u64)count);
    }
}

// One level of a radix search for a k-th largest magnitude: histogram[layer, digit] counts the
// digit at `shift`, among magnitudes whose bits from `higher` on are prefix[layer]. `together`:
// treat all layers as one.
__global__ void digit_histogram(const u64* __restrict__ v, const Chunk* __restrict__ chunks,
                                const u32* __restrict__ prefixes, i64 shift, i64 digits, i64 higher,
                                i64 together, u64* histogram) {
    __shared__ u32 counts[DIGITS];
    const Chunk chunk = chunks[blockIdx.x];
    const float* __restrict__ values = (const float*)v[chunk.layer];
    const i64 row = together ? 0 : chunk.layer;
    const u32 prefix = prefixes[row];
    PHASE for (i64 digit = threadIdx.x; digit < digits; digit += blockDim.x) counts[digit] = 0;
    PHASE for (i64 i = chunk.start + threadIdx.x; i < chunk.stop; i += blockDim.x) {
        const u32 bits = magnitude(values[i]);
        if (bits >> higher == prefix) atomicAdd(&counts[(bits >> shift) & (u32)(digits - 1)], 1u);
    }
    PHASE for (i64 digit = threadIdx.x; digit < digits; digit += blockDim.x)
        if (counts[digit]) atomicAdd(&histogram[row * digits + digit], (u64)counts[digit]);
}

// The end of a level, with a block for each row of the histogram: the digit of the k-th largest is
// appended to the prefix, and k becomes its rank among the magnitudes with this digit. Each thread
// sums neighbouring digits, so that a single thread only has to go through the sums.
__global__ void next_digit(const u64* __restrict__ histogram, i64 digits, u32* prefixes, i64* k) {
    __shared__ i64 sums[THREADS];
    const u64* __restrict__ counts = histogram + blockIdx.x * digits;
    const i64 share = (digits + blockDim.x - 1) / blockDim.x;
    PHASE {
        i64 sum = 0;
        const i64 stop = (threadIdx.x + 1) * share < digits ? (threadIdx.x + 1) * share : digits;
        for (i64 digit = threadIdx.x * share; digit < stop; digit++) sum += (i64)counts[digit];
        sums[threadIdx.x] = sum;
    }
    PHASE if (threadIdx.x == 0) {
        i64 rank = k[blockIdx.x];
        const i64 thread = holder(sums, &rank);
        i64 digit = (thread + 1) * share < digits ? (thread + 1) * share - 1 : digits - 1;
        while (digit > 0 && rank > (i64)counts[digit]) rank -= (i64)counts[digit--];
        prefixes[blockIdx.x] = prefixes[blockIdx.x] * (u32)digits + (u32)digit;
        k[blockIdx.x] = rank;
    }
}

// sums[block]: the sum of the squares of a chunk, always in the same order.
__global__ void sum_of_squares(const float* __restrict__ v, const Chunk* __restrict__ chunks,
                               double* __restrict__ sums) {
    __shared__ double parts[THREADS];
    const Chunk chunk = chunks[blockIdx.x];
    PHASE {
        double sum = 0;
        for (i64 i = chunk.start + threadIdx.x; i < chunk.stop; i += blockDim.x)
            sum += widened(v[i]) * widened(v[i]);
        parts[threadIdx.x] = sum;
    }
    for (i64 count = blockDim.x; count > 1; count = (count + 1) / 2) {
        const i64 half = (count + 1) / 2;
        PHASE if (threadIdx.x + half < count) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    PHASE if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}

// target[index[i]] += values[i], or −= if subtracted; without an index target[i]. A block does
// CHUNK of them.
__global__ void add_at(float* __restrict__ target, const i64* __restrict__ index,
                       const float* __restrict__ values, i64 size, i64 subtracted) {
    const i64 start = (i64)blockIdx.x * CHUNK, stop = start + CHUNK < size ? start + CHUNK : size;
    PHASE for (i64 i = start + threadIdx.x; i < stop; i += blockDim.x) {
        const i64 at = index ? index[i] : i;
        target[at] = subtracted ? minus(target[at], values[i]) : plus(target[at], values[i]);
    }
}

// v *= factor, given by its bits.
__global__ void scale(float* __restrict__ v, i64 size, i64 factor) {
    const i64 start = (i64)blockIdx.x * CHUNK, stop = start + CHUNK < size ? start + CHUNK : size;
    Bits by;
    by.u = (u32)factor;
    PHASE for (i64 i = start + threadIdx.x; i < stop; i += blockDim.x) v[i] = times(v[i], by.f);
}

// u += decay·w; m = mu·m + u; w −= lr·m, or with Nesterov lr·(u + mu·m); the factors by their bits.
__global__ void sgd(float* __restrict__ weights, float* __restrict__ momentum,
                    float* __restrict__ update, i64 size, i64 lr, i64 mu, i64 decay, i64 nesterov) {
    const i64 start = (i64)blockIdx.x * CHUNK, stop = start + CHUNK < size ? start + CHUNK : size;
    Bits rate, keep, pull;
    rate.u = (u32)lr, keep.u = (u32)mu, pull.u = (u32)decay;
    PHASE for (i64 i = start + threadIdx.x; i < stop; i += blockDim.x) {
        const float u = plus(update[i], times(pull.f, weights[i]));
        const float m = plus(times(momentum[i], keep.f), u);
        const float direction = nesterov ? plus(u, times(keep.f, m)) : m;
        update[i] = u, momentum[i] = m;
        weights[i] = minus(weights[i], times(rate.f, direction));
    }
}
