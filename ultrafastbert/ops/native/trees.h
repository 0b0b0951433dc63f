// Fast feedforward trees on contiguous arrays: the walk, the forward pass, and both halves of the backward pass.
//
// - Tokens walk the trees in blocks, one level at a time, so that the loads of several tokens overlap. Outputs are
//   computed in the order of the leaves, so that consecutive tokens find their rows in cache. (Prefetching the next
//   rows explicitly, or sorting tokens by subtree during the walk, was slower.)
// - Sorted by leaf, the tokens of any node are consecutive as well. The node's gradient is a sum over this run of
//   tokens and is written once. Threads divide trees and columns among them, not tokens, so that the order of a sum
//   does not depend on the number of threads.
// - The result of a token does not depend on the other tokens or on the number of threads, to the last bit.
// - A NaN is not greater than 0, so a token whose pre-activation is NaN goes left.
#pragma once

#include <numeric>
#include <vector>

#include "vectors.h"

namespace {

template <class T>
struct Trees {
  int64_t trees, nodes, levels, hidden;
  const T *weight_in, *bias_in, *weight_out;  // bias_in may be null

  int64_t path() const { return trees * levels; }  // neurons that a token uses
  int64_t row(int64_t tree, int64_t node) const { return tree * nodes + node; }
};

// The node of `level` on the path to `leaf`. With nodes counted from 1, the number of an ancestor is a prefix of the
// node's number in binary.
inline int64_t ancestor(int64_t leaf, int64_t level, int64_t levels) {
  return ((leaf + 1) >> (levels - 1 - level)) - 1;
}

// Walks the tokens down all trees. Fills leaf (tokens, trees) and pre_activation (tokens, trees, levels).
template <class T>
void walk(const Trees<T>& f, const T* x, int64_t tokens, int32_t* leaf, Accumulator<T>* pre_activation) {
  constexpr int64_t BLOCK = 4;
  for (int64_t begin = 0; begin < tokens; begin += BLOCK) {
    const int64_t end = std::min(tokens, begin + BLOCK);
    for (int64_t k = 0; k < f.trees; k++) {
      for (int64_t t = begin; t < end; t++) leaf[t * f.trees + k] = 0;
      for (int64_t level = 0; level < f.levels; level++) {
        for (int64_t t = begin; t < end; t++) {
          int32_t& node = leaf[t * f.trees + k];
          const int64_t row = f.row(k, node);
          auto z = dot(x + t * f.hidden, f.weight_in + row * f.hidden, f.hidden);
          if (f.bias_in) z += static_cast<Accumulator<T>>(f.bias_in[row]);
          pre_activation[t * f.path() + k * f.levels + level] = z;
          if (level + 1 < f.levels) node = 2 * node + 1 + (z > 0);
        }
      }
    }
  }
}

// Sorts tokens by their node on the level that has `width` nodes, from node `first` on. The sort is stable. Returns
// where the tokens of each node begin in `order`, followed by the number of tokens.
std::vector<int64_t> sort_by_node(const int32_t* node, int64_t stride, int64_t tokens, int64_t first, int64_t width,
                                  int32_t* order) {
  std::vector<int64_t> begin(width + 1);
  for (int64_t t = 0; t < tokens; t++) begin[node[t * stride] - first + 1]++;
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (int64_t t = 0; t < tokens; t++) order[next[node[t * stride] - first]++] = t;
  return begin;
}

// An order of the tokens in which neighbours use the same rows: by leaf of the first tree, unless tokens are few.
template <class T>
std::vector<int32_t> visiting_order(const Trees<T>& f, const int32_t* leaf, int64_t tokens) {
  std::vector<int32_t> order(tokens);
  const int64_t leaves = (f.nodes + 1) / 2;
  if (tokens * 4 >= leaves && tokens > 1) {
    sort_by_node(leaf, f.trees, tokens, leaves - 1, leaves, order.data());
  } else {
    std::iota(order.begin(), order.end(), 0);
  }
  return order;
}

// The rows of `weight` on the paths of a token to its leaf in each tree.
template <class T>
void path_rows(const Trees<T>& f, const T* weight, const int32_t* leaf, const T** rows) {
  for (int64_t k = 0; k < f.trees; k++) {
    for (int64_t level = 0; level < f.levels; level++) {
      *rows++ = weight + f.row(k, ancestor(leaf[k], level, f.levels)) * f.hidden;
    }
  }
}

template <class T>
void forward(const Trees<T>& f, const T* x, int64_t tokens, int32_t* leaf, Accumulator<T>* pre_activation, T* out) {
  walk(f, x, tokens, leaf, pre_activation);
  std::vector<const T*> rows(f.path());
  std::vector<Accumulator<T>> activation(f.path());
  for (int64_t t : visiting_order(f, leaf, tokens)) {
    path_rows(f, f.weight_out, leaf + t * f.trees, rows.data());
    gelu(pre_activation + t * f.path(), f.path(), activation.data());
    weighted_sum(rows.data(), activation.data(), f.path(), f.hidden, out + t * f.hidden);
  }
}

// The half of the backward pass that goes through the tokens. It also computes what the other half needs, the gradient
// of each pre-activation and each activation.
template <class T>
void backward_tokens(const Trees<T>& f, const T* grad, int64_t tokens, const int32_t* leaf,
                     const Accumulator<T>* pre_activation, T* grad_x, Accumulator<T>* grad_pre_activation,
                     Accumulator<T>* activation) {
  std::vector<const T*> rows(f.path());
  for (int64_t t : visiting_order(f, leaf, tokens)) {
    auto* slope = grad_pre_activation + t * f.path();
    gelu(pre_activation + t * f.path(), f.path(), activation + t * f.path(), slope);
    path_rows(f, f.weight_out, leaf + t * f.trees, rows.data());
    for (int64_t i = 0; i < f.path(); i++) slope[i] *= dot(grad + t * f.hidden, rows[i], f.hidden);
    path_rows(f, f.weight_in, leaf + t * f.trees, rows.data());
    weighted_sum(rows.data(), slope, f.path(), f.hidden, grad_x + t * f.hidden);
  }
}

// Tokens sorted by their leaves in one tree. The tokens of any node, also above the leaves, are a run of neighbours.
struct Runs {
  int64_t levels;
  std::vector<int32_t> order;
  std::vector<int64_t> begin;  // of each leaf, in `order`

  Runs(const int32_t* leaf, int64_t stride, int64_t tokens, int64_t levels) : levels(levels), order(tokens) {
    const int64_t leaves = int64_t(1) << (levels - 1);
    begin = sort_by_node(leaf, stride, tokens, leaves - 1, leaves, order.data());
  }

  // The run of tokens at the node at `position` on `level`, as begin and end in `order`.
  std::pair<int64_t, int64_t> of(int64_t level, int64_t position) const {
    const int64_t shift = levels - 1 - level;
    return {begin[position << shift], begin[(position + 1) << shift]};
  }
};

// The other half goes through the nodes. It computes PAIRS * STEP columns of the gradient of one weight of one tree:
// the row of a node is the sum over its tokens of `factor[t * path + level]` times the token's row of `x`. The
// subtrees below level `cut` are computed one after the other, so that their tokens stay in cache for all of their
// levels. The sums of the few nodes above are accumulated meanwhile.
template <class T, int PAIRS>
void backward_columns(const Runs& runs, int64_t path, int64_t hidden, const T* x, const Accumulator<T>* factor,
                      int64_t size, T* grad_weight) {
  const int64_t levels = runs.levels, cut = levels / 2;
  auto add = [&](Sums<T, PAIRS>& sums, int64_t level, std::pair<int64_t, int64_t> run) {
    for (int64_t i = run.first; i < run.second; i++) {
      const int64_t t = runs.order[i];
      sums.add(factor[t * path + level], x + t * hidden, size);
    }
  };
  auto row = [&](int64_t level, int64_t position) {
    return grad_weight + ((int64_t(1) << level) - 1 + position) * hidden;
  };
  std::vector<Sums<T, PAIRS>> above(cut);
  for (int64_t subtree = 0; subtree < int64_t(1) << cut; subtree++) {
    for (int64_t level = cut; level < levels; level++) {
      const int64_t width = int64_t(1) << (level - cut);
      for (int64_t position = subtree * width; position < (subtree + 1) * width; position++) {
        Sums<T, PAIRS> sums;
        add(sums, level, runs.of(level, position));
        sums.write(row(level, position), size);
      }
    }
    for (int64_t level = 0; level < cut; level++) {
      const int64_t width = int64_t(1) << (cut - level);  // subtrees below a node of this level
      if (subtree % width == 0) above[level] = {};
      auto sums = above[level];  // a copy, which stays in registers
      add(sums, level, runs.of(cut, subtree));
      above[level] = sums;
      if (subtree % width == width - 1) sums.write(row(level, subtree / width), size);
    }
  }
}

template <class T>
void backward_bias(const Runs& runs, int64_t path, const Accumulator<T>* factor, T* grad_bias) {
  for (int64_t level = 0; level < runs.levels; level++) {
    for (int64_t position = 0; position < int64_t(1) << level; position++) {
      Accumulator<T> sum = 0;
      auto [begin, end] = runs.of(level, position);
      for (int64_t i = begin; i < end; i++) sum += factor[runs.order[i] * path + level];
      *grad_bias++ = static_cast<T>(sum);
    }
  }
}

}  // namespace
