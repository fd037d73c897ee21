// Products of 8-bit tokens and 8-bit weights.
//
// Weights have a scale for each output, tokens one for every GROUP inputs. Weights lie in tiles of TILE outputs,
// [outputs / TILE][inputs / 4][TILE][4], as unsigned bytes of value + OFFSET: the layout of instructions that add the
// products of four unsigned and four signed bytes to a 32-bit sum.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "vectors.h"

namespace mtad {

constexpr int TILE = 32;
constexpr int GROUP = 64;
constexpr int QUADS = GROUP / 4;
constexpr int OFFSET = 128;
constexpr int MOST_TOKENS = 6;  // of one pass over a tile; their sums fill the registers

struct Linear {
  const uint8_t* weights;
  const float* scales;  // of the outputs, padded to whole tiles
  const float* bias;    // padded as well, or null
  int64_t num_inputs;
  int64_t num_outputs;
};

inline int64_t num_tiles(const Linear& linear) { return (linear.num_outputs + TILE - 1) / TILE; }
inline int64_t num_groups(int64_t num_inputs) { return (num_inputs + GROUP - 1) / GROUP; }
inline int64_t tile_bytes(const Linear& linear) { return num_groups(linear.num_inputs) * GROUP * TILE; }

// Tokens as signed bytes, padded with zeros to whole groups: value = byte * scale of its group.
struct Quantised {
  int8_t* bytes;     // [tokens, groups, GROUP]
  float* scales;     // [tokens, groups]
  int32_t* excess;   // [tokens, groups], minus OFFSET times the sum of the bytes: what unsigned weights add too much
  int64_t groups;
};

// Some inputs of one group become bytes; if they hold a NaN or an infinity, the scale is NaN.
inline void quantise_group(const float* inputs, int size, int8_t* bytes, float* scale, int32_t* excess) {
  uint32_t largest_bits = 0;
  for (int i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, inputs + i, sizeof bits);
    largest_bits = std::max(largest_bits, bits & 0x7fffffffu);
  }
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const bool is_finite = largest_bits < 0x7f800000u;
  const bool is_zero = largest < 1e-30f;  // its inverse would not be finite
  *scale = !is_finite ? std::numeric_limits<float>::quiet_NaN() : is_zero ? 0.0f : largest / 127.0f;
  const float factor = !is_finite || is_zero ? 0.0f : 127.0f / largest;
  int32_t sum = 0;
  for (int i = 0; i < size; ++i) {
    const float shifted = (is_finite ? inputs[i] : 0.0f) * factor + 12582912.0f;  // 1.5 * 2^23 rounds, ties to even
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bytes[i] = static_cast<int8_t>(bits - 0x4B400000);
    sum += bits - 0x4B400000;
  }
  *excess = -OFFSET * sum;
}

inline void quantise(const float* token, int64_t size, const Quantised& to, int64_t index) {
  for (int64_t group = 0; group < to.groups; ++group) {
    const int64_t place = index * to.groups + group, left = size - group * GROUP;
    int8_t* bytes = to.bytes + place * GROUP;
    if (left >= GROUP) {
      quantise_group(token + group * GROUP, GROUP, bytes, to.scales + place, to.excess + place);
    } else {
      std::memset(bytes, 0, GROUP);
      quantise_group(token + group * GROUP, static_cast<int>(left), bytes, to.scales + place, to.excess + place);
    }
  }
}

#if defined(__AVX2__)
// Pairs of products of eight outputs become one sum each.
inline __m256i join_pairs(__m256i first_four, __m256i last_four) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(first_four, last_four), 0xD8);
}
#endif

// One token's bytes of a group times the weights of a tile, for processors without products of four bytes.
inline void group_sums(const uint8_t* tile, const int8_t* bytes, int32_t* sums) {
#if defined(__AVX2__)
  __m256i pairs[TILE / 4];
  for (auto& pair : pairs) pair = _mm256_setzero_si256();
  for (int quad = 0; quad < QUADS; ++quad) {
    int32_t four;
    std::memcpy(&four, bytes + quad * 4, 4);
    const __m256i token = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
    for (int part = 0; part < TILE / 4; ++part) {
      const auto* from = reinterpret_cast<const __m128i*>(tile + (quad * TILE + part * 4) * 4);
      const __m256i products = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(from)), token);
      pairs[part] = _mm256_add_epi32(pairs[part], products);
    }
  }
  for (int part = 0; part < TILE / 4; part += 2)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + part * 4), join_pairs(pairs[part], pairs[part + 1]));
#else
  std::fill(sums, sums + TILE, 0);
  for (int quad = 0; quad < QUADS; ++quad)
    for (int j = 0; j < TILE; ++j)
      for (int i = 0; i < 4; ++i) sums[j] += int32_t(tile[(quad * TILE + j) * 4 + i]) * int32_t(bytes[quad * 4 + i]);
#endif
}

// What to fetch into the cache while a tile is multiplied: from where on, and how many bytes for every quad.
struct Ahead {
  const uint8_t* from;
  int64_t bytes;
};

inline void fetch(const uint8_t* from) { __builtin_prefetch(from, 0, 2); }

// The sums of TOKENS tokens, from `first` on, times one tile, before the scales of the outputs: [TOKENS][TILE].
template <int TOKENS>
inline void tile_sums(const uint8_t* tile, const Quantised& tokens, int64_t first, Ahead ahead, float* to) {
  const int64_t groups = tokens.groups;
  const int8_t* bytes = tokens.bytes + first * groups * GROUP;
  const float* scales = tokens.scales + first * groups;
  const int32_t* excess = tokens.excess + first * groups;
#if defined(__AVX512VNNI__)
  __m512 low[TOKENS], high[TOKENS];
  MTAD_UNROLL for (int m = 0; m < TOKENS; ++m) low[m] = high[m] = _mm512_setzero_ps();
  for (int64_t group = 0; group < groups; ++group) {
    __m512i low_sum[TOKENS], high_sum[TOKENS];
    MTAD_UNROLL for (int m = 0; m < TOKENS; ++m) low_sum[m] = high_sum[m] = _mm512_set1_epi32(excess[m * groups + group]);
    const int8_t* here = bytes + group * GROUP;
    for (int quad = 0; quad < QUADS; ++quad, tile += TILE * 4, ahead.from += ahead.bytes) {
      fetch(ahead.from);
      fetch(ahead.from + ahead.bytes / 2);
      const __m512i left = _mm512_loadu_si512(tile), right = _mm512_loadu_si512(tile + 64);
      MTAD_UNROLL for (int m = 0; m < TOKENS; ++m) {
        int32_t four;
        std::memcpy(&four, here + m * groups * GROUP + quad * 4, 4);
        const __m512i token = _mm512_set1_epi32(four);
        low_sum[m] = _mm512_dpbusd_epi32(low_sum[m], left, token);
        high_sum[m] = _mm512_dpbusd_epi32(high_sum[m], right, token);
      }
    }
    MTAD_UNROLL for (int m = 0; m < TOKENS; ++m) {
      const __m512 scale = _mm512_set1_ps(scales[m * groups + group]);
      low[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low_sum[m]), scale, low[m]);
      high[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high_sum[m]), scale, high[m]);
    }
  }
  MTAD_UNROLL for (int m = 0; m < TOKENS; ++m) {
    _mm512_storeu_ps(to + m * TILE, low[m]);
    _mm512_storeu_ps(to + m * TILE + 16, high[m]);
  }
#else
  static_cast<void>(ahead);
  std::fill(to, to + TOKENS * TILE, 0.0f);
  for (int64_t group = 0; group < groups; ++group, tile += QUADS * TILE * 4)
    for (int m = 0; m < TOKENS; ++m) {
      const int8_t* here = bytes + (m * groups + group) * GROUP;
      int32_t sums[TILE];
      group_sums(tile, here, sums);
      const float scale = scales[m * groups + group];
      for (int j = 0; j < TILE; ++j) to[m * TILE + j] += float(sums[j] + excess[m * groups + group]) * scale;
    }
#endif
}

// A tile's outputs for tokens `first` to `first + count`, [count][TILE].
inline void tile_product(
    const Linear& linear, int64_t tile, const Quantised& tokens, int64_t first, int count, Ahead ahead, float* to) {
  const uint8_t* weights = linear.weights + tile * tile_bytes(linear);
  switch (count) {
    case 1: tile_sums<1>(weights, tokens, first, ahead, to); break;
    case 2: tile_sums<2>(weights, tokens, first, ahead, to); break;
    case 3: tile_sums<3>(weights, tokens, first, ahead, to); break;
    case 4: tile_sums<4>(weights, tokens, first, ahead, to); break;
    case 5: tile_sums<5>(weights, tokens, first, ahead, to); break;
    case 6: tile_sums<6>(weights, tokens, first, ahead, to); break;
  }
  const float* scales = linear.scales + tile * TILE;
  const float* bias = linear.bias == nullptr ? nullptr : linear.bias + tile * TILE;
  for (int m = 0; m < count; ++m)
    for (int j = 0; j < TILE; ++j) to[m * TILE + j] = to[m * TILE + j] * scales[j] + (bias == nullptr ? 0.0f : bias[j]);
}

// Cuts tokens into parts of about one size, none larger than MOST_TOKENS, and calls each(first, count, ahead). While a
// tile is multiplied again and again, the next one is fetched.
template <typename Each>
inline void in_parts(const Linear& linear, int64_t tile, int64_t num_tokens, Each each) {
  const int64_t parts = (num_tokens + MOST_TOKENS - 1) / MOST_TOKENS, size = tile_bytes(linear);
  const uint8_t* next = linear.weights + std::min(tile + 1, num_tiles(linear) - 1) * size;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * num_tokens / parts, last = (part + 1) * num_tokens / parts;
    each(first, static_cast<int>(last - first), Ahead{next + part * size / parts, TILE * 4 / parts});
  }
}

}  // namespace mtad
