/* Whether estimates of reciprocals can replace roots and divisions in a float32 step.

   AVX-512 estimates 1/sqrt(x) and 1/x to 14 bits. Newton steps and an exact residual make them as precise as the
   instructions for roots and divisions. The program compares the bits, and times a step's loop over 8,192 elements,
   which the second cache holds: ns of CPU time for 16 elements, the median of 41 interleaved turns and the quartiles of
   its ratio to the loop with a root and a division. The estimates have no branches for zero, infinity and NaN here, so
   they are faster than they would be in a kernel.

       gcc -O2 -march=native -ffp-contract=off benchmarks/estimates.c -o estimates -lm && ./estimates
*/
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ONE _mm512_set1_ps(1.0f)
#define HALF _mm512_set1_ps(0.5f)

static __m512 root(__m512 x) { return _mm512_sqrt_ps(x); }
static __m512 quotient(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }

static __m512 refined(__m512 x, __m512 y) {
    __m512 s = _mm512_mul_ps(x, y), h = _mm512_mul_ps(HALF, y);
    __m512 error = _mm512_fnmadd_ps(h, s, HALF);
    s = _mm512_fmadd_ps(s, error, s);
    h = _mm512_fmadd_ps(h, error, h);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(s, s, x), h, s);
}

static __m512 estimated_root(__m512 x) { return refined(x, _mm512_rsqrt14_ps(x)); }

static __m512 estimated_quotient(__m512 a, __m512 b) {
    __m512 y = _mm512_rcp14_ps(b);
    y = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(b, y, ONE), y);
    __m512 q = _mm512_mul_ps(a, y);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(b, q, a), y, q);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(b, q, a), y, q);
}

typedef struct { float beta1, beta2, rest1, rest2, step, eps, floor1, floor2, least; } Constants;

/* The root of each fourth vector is FIRST_ROOT. */
#define LOOP(name, FIRST_ROOT, ROOT, QUOTIENT)                                                                  \
    __attribute__((noinline)) static void name(float **arrays, long size, Constants c) {                        \
        for (long i = 0; i < size;) {                                                                           \
            STEP(FIRST_ROOT, QUOTIENT) STEP(ROOT, QUOTIENT) STEP(ROOT, QUOTIENT) STEP(ROOT, QUOTIENT)           \
        }                                                                                                       \
    }

#define STEP(ROOT, QUOTIENT)                                                                                    \
        {                                                                                                       \
            __m512 param = _mm512_loadu_ps(arrays[0] + i), grad = _mm512_loadu_ps(arrays[1] + i);               \
            __m512 first = _mm512_mul_ps(_mm512_set1_ps(c.beta1), _mm512_loadu_ps(arrays[2] + i));              \
            __m512 second = _mm512_mul_ps(_mm512_set1_ps(c.beta2), _mm512_loadu_ps(arrays[3] + i));             \
            first = _mm512_add_ps(first, _mm512_mul_ps(_mm512_set1_ps(c.rest1), grad));                         \
            second = _mm512_add_ps(second, _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(c.rest2), grad), grad));  \
            __mmask16 kept = _mm512_cmp_ps_mask(_mm512_abs_ps(first), _mm512_set1_ps(c.floor1), _CMP_GE_OQ);    \
            first = _mm512_maskz_mov_ps(kept, first);                                                           \
            second = _mm512_maskz_mov_ps(                                                                       \
                _mm512_cmp_ps_mask(second, _mm512_set1_ps(c.floor2), _CMP_GE_OQ), second);                      \
            second = _mm512_mask_max_ps(second, kept, _mm512_set1_ps(c.least), second);                         \
            __m512 denominator = _mm512_add_ps(ROOT(second), _mm512_set1_ps(c.eps));                            \
            __m512 change = QUOTIENT(_mm512_mul_ps(_mm512_set1_ps(c.step), first), denominator);                \
            _mm512_storeu_ps(arrays[2] + i, first);                                                             \
            _mm512_storeu_ps(arrays[3] + i, second);                                                            \
            _mm512_storeu_ps(arrays[0] + i, _mm512_sub_ps(param, change));                                      \
            i += 16;                                                                                            \
        }

LOOP(plain, root, root, quotient)
LOOP(one_in_four, estimated_root, root, quotient)
LOOP(root_estimated, estimated_root, estimated_root, quotient)
LOOP(both_estimated, estimated_root, estimated_root, estimated_quotient)

static int differing(__m512 one, __m512 other) {
    __mmask16 mask = _mm512_cmpneq_epi32_mask(_mm512_castps_si512(one), _mm512_castps_si512(other));
    return __builtin_popcount(mask);
}

static __m512 from_bits(uint32_t bits) {
    __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_set1_epi32((int)bits), lanes));
}

static void compare_bits(void) {
    long roots = 0, quotients = 0, tried = 1L << 26;
    uint32_t last = 0; /* the largest exponent with a root that differs */
    for (uint32_t bits = 1u << 23; bits < 255u << 23; bits += 16) {
        __m512 x = from_bits(bits);
        int found = differing(root(x), estimated_root(x));
        roots += found;
        if (found) last = bits >> 23;
    }
    uint64_t state = 88172645463325252ull;
    for (long k = 0; k < tried; k += 16) {
        uint32_t words[2][16];
        for (int lane = 0; lane < 16; lane++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            words[0][lane] = 127u << 23 | (state & 0x7fffff);
            words[1][lane] = 127u << 23 | (state >> 23 & 0x7fffff);
        }
        __m512 a = _mm512_loadu_ps(words[0]), b = _mm512_loadu_ps(words[1]);
        quotients += differing(quotient(a, b), estimated_quotient(a, b));
    }
    printf("roots of all positive normal numbers that differ: %ld", roots);
    if (roots) printf(", the last with exponent %d", (int)last - 127);
    printf("\nquotients of %ld random pairs from 1 to 2 that differ: %ld\n", tried, quotients);
}

static float with_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static uint32_t bits_near(double number) {
    float near = (float)number;
    uint32_t bits;
    memcpy(&bits, &near, sizeof bits);
    return bits;
}

/* All roots from 1 to 4, each from every estimate that AVX-512 allows: whatever a CPU estimates, the bits are these. */
static void compare_estimates(void) {
    long tried = 0, differ = 0;
    for (uint32_t bits = 127u << 23; bits < 129u << 23; bits++) {
        __m512 x = _mm512_set1_ps(with_bits(bits)), expected = root(x);
        double exact = 1 / sqrt((double)with_bits(bits)), bound = 1.0 / (1 << 14);
        for (uint32_t y = bits_near(exact * (1 - bound)); y <= bits_near(exact * (1 + bound)); y += 16, tried += 16)
            differ += differing(expected, refined(x, from_bits(y)));
    }
    printf("roots from 1 to 4, each from all estimates with an error up to 2**-14: %ld, of which %ld differ\n", tried,
           differ);
}

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int ascending(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

enum { SIZE = 8192, CALLS = 300, TURNS = 41, LOOPS = 4 };

int main(void) {
    compare_bits();
    compare_estimates();
    void (*loops[LOOPS])(float **, long, Constants) = {plain, one_in_four, root_estimated, both_estimated};
    const char *names[LOOPS] = {"root and division", "1 root in 4", "root estimated", "both estimated"};
    Constants c = {0.9f, 0.999f, 0.1f, 0.001f, 1e-3f, 1e-8f, 1e-30f, 1e-30f, 1e-20f};
    float *arrays[4];
    for (int k = 0; k < 4; k++) {
        arrays[k] = aligned_alloc(64, SIZE * sizeof(float));
        for (int i = 0; i < SIZE; i++) arrays[k][i] = 0.5f + 0.1f * (float)(i % 7);
    }
    double times[LOOPS][TURNS], ratios[LOOPS][TURNS];
    for (int turn = 0; turn < TURNS; turn++)
        for (int k = 0; k < LOOPS; k++) {
            double begin = cpu_seconds();
            for (int call = 0; call < CALLS; call++) loops[k](arrays, SIZE, c);
            times[k][turn] = (cpu_seconds() - begin) / CALLS / (SIZE / 16) * 1e9;
            ratios[k][turn] = times[k][turn] / times[0][turn];
        }
    for (int k = 0; k < LOOPS; k++) {
        qsort(times[k], TURNS, sizeof(double), ascending);
        qsort(ratios[k], TURNS, sizeof(double), ascending);
        printf("%-18s %.2f ns, ratio %.3f [%.3f, %.3f]\n", names[k], times[k][TURNS / 2], ratios[k][TURNS / 2],
               ratios[k][TURNS / 4], ratios[k][3 * TURNS / 4]);
    }
    return 0;
}
