// Vectors of 16 floats that any compiler with vector extensions maps to what the processor has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mtad {

// Before a short loop over arrays that are to stay in registers.
#define MTAD_UNROLL _Pragma("GCC unroll 16")

constexpr int LANES = 16;
typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));

inline floats splat(float value) { return floats{} + value; }

inline floats load(const float* from) {
  floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, floats value) { std::memcpy(to, &value, sizeof value); }

// Sixteen bfloat16 numbers, each the upper half of a float.
inline floats load(const uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return reinterpret_cast<floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#else
  ints bits;
  for (int lane = 0; lane < LANES; ++lane) bits[lane] = static_cast<int32_t>(static_cast<uint32_t>(from[lane]) << 16);
  return reinterpret_cast<floats>(bits);
#endif
}

inline float widen(float value) { return value; }

inline float widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float value, float* to) { *to = value; }

// Rounded to the nearest bfloat16, ties to even; a NaN stays one.
inline void narrow(float value, uint16_t* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *to = std::isnan(value) ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float total(floats value) {
  float sum[LANES];
  store(sum, value);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  return sum[0];
}

inline float largest(floats value) {
  float most = value[0];
  for (int lane = 1; lane < LANES; ++lane) most = value[lane] > most ? value[lane] : most;
  return most;
}

inline floats larger(floats left, floats right) { return left > right ? left : right; }

// e to the power of each lane, to about one unit in the last place; 0 from -87 down, which includes -infinity.
inline floats exponential(floats value) {
  const floats clamped = larger(value < splat(88.0f) ? value : splat(88.0f), splat(-87.0f));
  const floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const floats shifted = clamped * 1.44269504f + magic;
  const floats whole = shifted - magic;
  const floats rest = (clamped - whole * 0.693359375f) - whole * -2.12194440e-4f;
  floats power = splat(1.9875691500e-4f);
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  const ints exponent = (reinterpret_cast<ints>(shifted) - 0x4B400000 + 127) << 23;
  const floats result = power * reinterpret_cast<floats>(exponent);
  return value > splat(-87.0f) ? result : value != value ? value : floats{};
}

}  // namespace mtad
