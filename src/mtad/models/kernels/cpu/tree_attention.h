// Attention of tree nodes over committed tokens, their ancestors and themselves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace mtad {

constexpr int MOST_QUERIES = 12;

// What one token sees: the first `prefix` slots, and those of tree nodes whose bit is set in `ancestors`.
struct Sight {
  int64_t prefix;
  uint64_t ancestors;
  int64_t tree_start;

  bool sees(int64_t slot) const {
    const int64_t node = slot - tree_start;
    return slot < prefix || (node >= 0 && node < 64 && ((ancestors >> node) & 1));
  }

  // No slot from here on is seen.
  int64_t end() const {
    int64_t node = 64;
    while (node > 0 && !((ancestors >> (node - 1)) & 1)) --node;
    return node == 0 ? prefix : std::max(prefix, tree_start + node);
  }
};

// Two vectors, their lanes in turns: the lower half and the upper half of the row of 32.
inline floats zip_low(floats left, floats right) {
  return __builtin_shufflevector(left, right, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline floats zip_high(floats left, floats right) {
  return __builtin_shufflevector(left, right, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Keys of one head of one row, a block of 16 slots after the other, [blocks][head_dim][16].
class TurnedKeys {
 public:
  // Turns the first `num_slots` of `keys`, [cache_slots, head_dim], unless that was done for the same place.
  template <typename Element>
  const float* turn(const Element* keys, int64_t num_slots, int64_t cache_slots, int64_t head_dim) {
    const int64_t blocks = (num_slots + LANES - 1) / LANES;
    if (keys != place_) num_blocks_ = 0;
    place_ = keys;
    turned_.resize(std::max<size_t>(turned_.size(), blocks * head_dim * LANES));
    for (; num_blocks_ < blocks; ++num_blocks_) turn_block(keys, num_blocks_ * LANES, cache_slots, head_dim);
    return turned_.data();
  }

 private:
  template <typename Element>
  void turn_block(const Element* keys, int64_t first, int64_t cache_slots, int64_t head_dim) {
    float* to = turned_.data() + first * head_dim;
    const int64_t count = std::min<int64_t>(LANES, cache_slots - first);
    for (int64_t d = 0; d < head_dim; d += LANES) {
      floats rows[LANES], next[LANES];
      MTAD_UNROLL for (int i = 0; i < LANES; ++i) rows[i] = i < count ? load(keys + (first + i) * head_dim + d) : floats{};
      MTAD_UNROLL for (int round = 0; round < 4; ++round) {
        MTAD_UNROLL for (int i = 0; i < LANES / 2; ++i) {
          next[2 * i] = zip_low(rows[i], rows[i + LANES / 2]);
          next[2 * i + 1] = zip_high(rows[i], rows[i + LANES / 2]);
        }
        MTAD_UNROLL for (int i = 0; i < LANES; ++i) rows[i] = next[i];
      }
      MTAD_UNROLL for (int i = 0; i < LANES; ++i) store(to + (d + i) * LANES, rows[i]);
    }
  }

  const void* place_ = nullptr;
  int64_t num_blocks_ = 0;
  std::vector<float> turned_;
};

// Products of COUNT queries with the keys of one block, [COUNT][16] at `stride` floats.
template <int COUNT>
inline void block_scores(const float* const* queries, const float* keys, int64_t head_dim, float scaling, float* to, int64_t stride) {
  floats sums[COUNT] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    const floats key = load(keys + d * LANES);
    MTAD_UNROLL for (int i = 0; i < COUNT; ++i) sums[i] += key * queries[i][d];
  }
  MTAD_UNROLL for (int i = 0; i < COUNT; ++i) store(to + i * stride, sums[i] * scaling);
}

// COUNT queries' weighted sums of PARTS * 16 channels of the values.
template <int COUNT, int PARTS, typename Element>
inline void weigh_values(
    const float* weights, int64_t stride, const Element* values, int64_t num_slots, int64_t head_dim, float* const* to) {
  floats sums[COUNT][PARTS] = {};
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    floats value[PARTS];
    MTAD_UNROLL for (int p = 0; p < PARTS; ++p) value[p] = load(values + slot * head_dim + p * LANES);
    MTAD_UNROLL for (int i = 0; i < COUNT; ++i)
      MTAD_UNROLL for (int p = 0; p < PARTS; ++p) sums[i][p] += value[p] * weights[i * stride + slot];
  }
  MTAD_UNROLL for (int i = 0; i < COUNT; ++i)
    MTAD_UNROLL for (int p = 0; p < PARTS; ++p) store(to[i] + p * LANES, sums[i][p]);
}

// Scores become weights that sum to one over what is seen; all slots of [0, num_slots), a multiple of 16.
inline void soften(float* scores, int64_t num_slots, const Sight& sight) {
  const float nothing = -std::numeric_limits<float>::infinity();
  for (int64_t slot = sight.prefix / LANES * LANES; slot < num_slots; ++slot)
    if (!sight.sees(slot)) scores[slot] = nothing;
  floats most = splat(nothing);
  for (int64_t slot = 0; slot < num_slots; slot += LANES) most = larger(load(scores + slot), most);
  const float top = largest(most);
  floats sums = {};
  for (int64_t slot = 0; slot < num_slots; slot += LANES) {
    const floats weights = exponential(load(scores + slot) - top);
    store(scores + slot, weights);
    sums += weights;
  }
  const float factor = 1.0f / total(sums);
  for (int64_t slot = 0; slot < num_slots; slot += LANES) store(scores + slot, load(scores + slot) * factor);
}

template <typename Element>
inline void weigh(int count, const float* weights, int64_t stride, const Element* values, int64_t num_slots, int64_t head_dim, float* const* to) {
  const int parts = head_dim % (4 * LANES) == 0 ? 4 : 1;
  for (int64_t d = 0; d < head_dim; d += parts * LANES)
    for (int i = 0; i < count;) {
      float* targets[4];
      const int taken = count - i >= 4 ? 4 : 1;
      for (int j = 0; j < taken; ++j) targets[j] = to[i + j] + d;
      const float* from = weights + i * stride;
      if (taken == 4 && parts == 4) weigh_values<4, 4>(from, stride, values + d, num_slots, head_dim, targets);
      else if (taken == 4) weigh_values<4, 1>(from, stride, values + d, num_slots, head_dim, targets);
      else if (parts == 4) weigh_values<1, 4>(from, stride, values + d, num_slots, head_dim, targets);
      else weigh_values<1, 1>(from, stride, values + d, num_slots, head_dim, targets);
      i += taken;
    }
}

// One thread's attention.
class Attention {
 public:
  // `count` queries of one key head of one row, each [head_dim], their outputs to `to`.
  template <typename Element>
  void attend(
      int count, const float* const* queries, const Sight* sights, const Element* keys, const Element* values,
      int64_t cache_slots, int64_t head_dim, float scaling, float* const* to) {
    int64_t end = 1;
    for (int i = 0; i < count; ++i) end = std::max(end, sights[i].end());
    end = std::min(end, cache_slots);
    const int64_t stride = (end + LANES - 1) / LANES * LANES;
    scores_.resize(std::max<size_t>(scores_.size(), MOST_QUERIES * stride));
    const float* turned = keys_.turn(keys, end, cache_slots, head_dim);
    for (int64_t slot = 0; slot < stride; slot += LANES)
      for (int i = 0; i < count;) {
        const float* block = turned + slot * head_dim;
        float* at = scores_.data() + i * stride + slot;
        const int taken = count - i >= 12 ? 12 : count - i >= 6 ? 6 : count - i >= 3 ? 3 : 1;
        if (taken == 12) block_scores<12>(queries + i, block, head_dim, scaling, at, stride);
        else if (taken == 6) block_scores<6>(queries + i, block, head_dim, scaling, at, stride);
        else if (taken == 3) block_scores<3>(queries + i, block, head_dim, scaling, at, stride);
        else block_scores<1>(queries + i, block, head_dim, scaling, at, stride);
        i += taken;
      }
    for (int i = 0; i < count; ++i) soften(scores_.data() + i * stride, stride, sights[i]);
    weigh(count, scores_.data(), stride, values, end, head_dim, to);
  }

 private:
  TurnedKeys keys_;
  std::vector<float> scores_;
};

}  // namespace mtad
