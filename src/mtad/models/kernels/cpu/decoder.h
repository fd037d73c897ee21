// A whole Llama-like decoder with 8-bit weights over a slot cache: embedding, layers, norm and head in one call.
#pragma once

#include <cmath>
#include <vector>

#include "int8_matmul.h"
#include "team.h"
#include "tree_attention.h"

namespace mtad {

struct Layer {
  Linear query, key, value, output, gate, up, down;
  const float* input_norm;
  const float* inner_norm;
  const float* query_norm;  // of each head, or null
  const float* key_norm;
  void* keys;  // [all rows, key_heads, cache_slots, head_dim]
  void* values;
};

struct Decoder {
  int64_t hidden, heads, key_heads, head_dim, num_layers;
  int64_t embedding_is_bfloat16, cache_is_bfloat16;
  const void* embedding;  // [vocabulary, hidden]
  const Layer* layers;
  const float* final_norm;
  Linear head;
  const float* frequencies;  // [head_dim / 2], radians a position
  float epsilon, scaling, rotary_scaling;
};

// The tensors of a ForwardBatch, [rows, queries] each.
struct Call {
  int64_t first_row, rows, queries, cache_slots, num_logits, vocabulary, num_threads;
  const int64_t* tokens;
  const int64_t* positions;
  const int64_t* slots;
  const int64_t* prefix_lengths;
  const int64_t* ancestors;
  const int64_t* tree_starts;  // [rows]
  float* logits;               // [rows, num_logits, vocabulary]
};

inline void normalise(const float* token, const float* weight, int64_t size, float epsilon, float* to) {
  floats squares = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) squares += load(token + i) * load(token + i);
  float sum = total(squares);
  for (; i < size; ++i) sum += token[i] * token[i];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
  for (i = 0; i < size; ++i) to[i] = token[i] * factor * weight[i];
}

// silu(gate) * up, in place of the gate.
inline void gate_tile(float* gate, const float* up, int size) {
  for (int i = 0; i < size; i += LANES) {
    const floats value = load(gate + i);
    store(gate + i, value / (1.0f + exponential(-value)) * load(up + i));
  }
}

template <typename Element>
class Pass {
 public:
  Pass(const Decoder& decoder, const Call& call)
      : decoder_(decoder),
        call_(call),
        num_tokens_(call.rows * call.queries),
        width_(decoder.heads * decoder.head_dim),
        key_width_(decoder.key_heads * decoder.head_dim),
        inner_(decoder.layers[0].gate.num_outputs),
        states_(num_tokens_ * decoder.hidden),
        queries_(num_tokens_ * width_),
        keys_(num_tokens_ * key_width_),
        values_(num_tokens_ * key_width_),
        attended_(num_tokens_ * width_),
        gated_(num_tokens_ * inner_),
        turns_(num_tokens_ * decoder.head_dim),
        normed_bytes_(num_tokens_, decoder.hidden),
        attended_bytes_(num_tokens_, width_),
        gated_bytes_(num_tokens_, inner_) {}

  void run(Team team) {
    team.each(num_tokens_, [&](int64_t token) { embed(token); });
    Attention attention;
    for (int64_t index = 0; index < decoder_.num_layers; ++index) run_layer(team, decoder_.layers[index], attention);
    const int64_t skipped = call_.queries - call_.num_logits;
    team.each(call_.rows * call_.num_logits, [&](int64_t i) {
      const int64_t token = i / call_.num_logits * call_.queries + skipped + i % call_.num_logits;
      take_normed(token, decoder_.final_norm, i);
    });
    team.wait();
    const int64_t used_tiles = (call_.vocabulary + TILE - 1) / TILE;
    team.each(used_tiles, [&](int64_t tile) {
      multiply(decoder_.head, tile, normed_bytes_, call_.rows * call_.num_logits, call_.logits, call_.vocabulary, false);
    });
  }

 private:
  void run_layer(Team team, const Layer& layer, Attention& attention) {
    const int64_t hidden = decoder_.hidden;
    team.each(num_tokens_, [&](int64_t token) { take_normed(token, layer.input_norm, token); });
    team.wait();
    const int64_t query_tiles = num_tiles(layer.query), key_tiles = num_tiles(layer.key);
    team.each(query_tiles + 2 * key_tiles, [&](int64_t tile) {
      if (tile < query_tiles) return multiply(layer.query, tile, normed_bytes_, num_tokens_, queries_.data(), width_, false);
      tile -= query_tiles;
      if (tile < key_tiles) return multiply(layer.key, tile, normed_bytes_, num_tokens_, keys_.data(), key_width_, false);
      multiply(layer.value, tile - key_tiles, normed_bytes_, num_tokens_, values_.data(), key_width_, false);
    });
    team.wait();
    team.each(num_tokens_, [&](int64_t token) { turn_and_keep(layer, token); });
    team.wait();
    attend(team, layer, attention);
    team.wait();
    team.each(num_tokens_, [&](int64_t token) { quantise(&attended_[token * width_], width_, attended_bytes_.view, token); });
    team.wait();
    team.each(num_tiles(layer.output), [&](int64_t tile) {
      multiply(layer.output, tile, attended_bytes_, num_tokens_, states_.data(), hidden, true);
    });
    team.wait();
    team.each(num_tokens_, [&](int64_t token) { take_normed(token, layer.inner_norm, token); });
    team.wait();
    team.each(num_tiles(layer.gate), [&](int64_t tile) { multiply_gated(layer, tile); });
    team.wait();
    team.each(num_tokens_, [&](int64_t token) { quantise(&gated_[token * inner_], inner_, gated_bytes_.view, token); });
    team.wait();
    team.each(num_tiles(layer.down), [&](int64_t tile) {
      multiply(layer.down, tile, gated_bytes_, num_tokens_, states_.data(), hidden, true);
    });
    team.wait();
  }

  void embed(int64_t token) {
    const int64_t hidden = decoder_.hidden, row = call_.tokens[token] * hidden;
    float* to = &states_[token * hidden];
    if (decoder_.embedding_is_bfloat16) {
      const auto* from = static_cast<const uint16_t*>(decoder_.embedding) + row;
      for (int64_t i = 0; i < hidden; ++i) to[i] = widen(from[i]);
    } else {
      std::copy_n(static_cast<const float*>(decoder_.embedding) + row, hidden, to);
    }
    const int64_t half = decoder_.head_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(call_.positions[token]) * decoder_.frequencies[i];
      turns_[token * 2 * half + i] = std::cos(angle) * decoder_.rotary_scaling;
      turns_[token * 2 * half + half + i] = std::sin(angle) * decoder_.rotary_scaling;
    }
  }

  // A token's normalised state as bytes, at `place`.
  void take_normed(int64_t token, const float* weight, int64_t place) {
    thread_local std::vector<float> normed;
    normed.resize(decoder_.hidden);
    normalise(&states_[token * decoder_.hidden], weight, decoder_.hidden, decoder_.epsilon, normed.data());
    quantise(normed.data(), decoder_.hidden, normed_bytes_.view, place);
  }

  void multiply(const Linear& linear, int64_t tile, const TokenBytes& tokens, int64_t num_tokens, float* to, int64_t width, bool adds) {
    const int64_t start = tile * TILE, kept = std::min<int64_t>(TILE, width - start);
    in_parts(linear, tile, num_tokens, [&](int64_t first, int count, Ahead ahead) {
      float product[MOST_TOKENS * TILE];
      tile_product(linear, tile, tokens.view, first, count, ahead, product);
      for (int m = 0; m < count; ++m) {
        float* at = to + (first + m) * width + start;
        for (int64_t j = 0; j < kept; ++j) at[j] = adds ? at[j] + product[m * TILE + j] : product[m * TILE + j];
      }
    });
  }

  void multiply_gated(const Layer& layer, int64_t tile) {
    const int64_t start = tile * TILE, kept = std::min<int64_t>(TILE, inner_ - start);
    const int64_t moved = layer.up.weights - layer.gate.weights;
    in_parts(layer.gate, tile, num_tokens_, [&](int64_t first, int count, Ahead ahead) {
      float gate[MOST_TOKENS * TILE], up[MOST_TOKENS * TILE];
      tile_product(layer.gate, tile, normed_bytes_.view, first, count, ahead, gate);
      tile_product(layer.up, tile, normed_bytes_.view, first, count, {ahead.from + moved, ahead.bytes}, up);
      gate_tile(gate, up, count * TILE);
      for (int m = 0; m < count; ++m) std::copy_n(gate + m * TILE, kept, &gated_[(first + m) * inner_ + start]);
    });
  }

  // Rotary positions in place.
  void turn(float* head, const float* norm, int64_t token) {
    const int64_t size = decoder_.head_dim, half = size / 2;
    if (norm != nullptr) normalise(head, norm, size, decoder_.epsilon, head);
    const float* cosines = &turns_[token * size];
    const float* sines = cosines + half;
    for (int64_t i = 0; i < half; ++i) {
      const float low = head[i], high = head[i + half];
      head[i] = low * cosines[i] - high * sines[i];
      head[i + half] = high * cosines[i] + low * sines[i];
    }
  }

  void turn_and_keep(const Layer& layer, int64_t token) {
    const int64_t size = decoder_.head_dim, row = call_.first_row + token / call_.queries;
    for (int64_t head = 0; head < decoder_.heads; ++head)
      turn(&queries_[token * width_ + head * size], layer.query_norm, token);
    for (int64_t head = 0; head < decoder_.key_heads; ++head) {
      float* key = &keys_[token * key_width_ + head * size];
      const float* value = &values_[token * key_width_ + head * size];
      turn(key, layer.key_norm, token);
      const int64_t at = ((row * decoder_.key_heads + head) * call_.cache_slots + call_.slots[token]) * size;
      for (int64_t i = 0; i < size; ++i) {
        narrow(key[i], static_cast<Element*>(layer.keys) + at + i);
        narrow(value[i], static_cast<Element*>(layer.values) + at + i);
      }
    }
  }

  void attend(Team team, const Layer& layer, Attention& attention) {
    const int64_t groups = decoder_.heads / decoder_.key_heads, folded = groups * call_.queries;
    const int64_t parts = (folded + MOST_QUERIES - 1) / MOST_QUERIES, size = decoder_.head_dim;
    team.each(call_.rows * decoder_.key_heads * parts, [&](int64_t item) {
      const int64_t part = item % parts, head = item / parts % decoder_.key_heads, row = item / parts / decoder_.key_heads;
      const int64_t first = folded * part / parts, last = folded * (part + 1) / parts;
      const float* queries[MOST_QUERIES];
      float* outputs[MOST_QUERIES];
      Sight sights[MOST_QUERIES];
      for (int64_t i = first; i < last; ++i) {
        const int64_t token = row * call_.queries + i / groups;
        const int64_t at = token * width_ + (head * groups + i % groups) * size;
        queries[i - first] = &queries_[at];
        outputs[i - first] = &attended_[at];
        sights[i - first] = {call_.prefix_lengths[token], static_cast<uint64_t>(call_.ancestors[token]), call_.tree_starts[row]};
      }
      const int64_t at = ((call_.first_row + row) * decoder_.key_heads + head) * call_.cache_slots * size;
      attention.attend(
          static_cast<int>(last - first), queries, sights, static_cast<const Element*>(layer.keys) + at,
          static_cast<const Element*>(layer.values) + at, call_.cache_slots, size, decoder_.scaling, outputs);
    });
  }

  const Decoder& decoder_;
  const Call& call_;
  const int64_t num_tokens_, width_, key_width_, inner_;
  std::vector<float> states_, queries_, keys_, values_, attended_, gated_, turns_;
  TokenBytes normed_bytes_, attended_bytes_, gated_bytes_;
};

// Slots to copy within rows, [rows, count] each.
struct Move {
  int64_t first_row, rows, cache_slots, count;
  const int64_t* sources;
  const int64_t* targets;
};

// Copies slots of all layers; all sources of a row are read before any target is written.
inline void move_slots(const Decoder& decoder, const Move& move) {
  const int64_t size = decoder.head_dim * (decoder.cache_is_bfloat16 ? 2 : 4);
  std::vector<char> read(move.count * size);
  for (int64_t index = 0; index < 2 * decoder.num_layers; ++index) {
    const Layer& layer = decoder.layers[index / 2];
    char* all = static_cast<char*>(index % 2 ? layer.values : layer.keys);
    for (int64_t item = 0; item < move.rows * decoder.key_heads; ++item) {
      char* head = all + (move.first_row * decoder.key_heads + item) * move.cache_slots * size;
      const int64_t first = item / decoder.key_heads * move.count;
      for (int64_t i = 0; i < move.count; ++i) std::memcpy(&read[i * size], head + move.sources[first + i] * size, size);
      for (int64_t i = 0; i < move.count; ++i) std::memcpy(head + move.targets[first + i] * size, &read[i * size], size);
    }
  }
}

template <typename Element>
void decode(const Decoder& decoder, const Call& call) {
  Pass<Element> pass(decoder, call);
  in_team(call.num_threads, [&](Team team) { pass.run(team); });
}

}  // namespace mtad
