// Dense parameters under Clippy; see dlrm_mtl/optim/clippy.py for the rule and clippy_native.py for what Python hands over.
#pragma once

#include <cstdint>

namespace dlrm_mtl {

// The options of a group of parameters.
struct DenseRule {
  double lr;         // for blocks that cannot set the factor only
  int64_t eps_inside;
  int64_t delayed;
  int64_t clip_accumulator;
  float lambda_rel;
  float lambda_abs;
  float threshold;   // accumulator_relative_threshold
  float eps;
  float decay;       // factor of the weights before the update
};

// Elements of one parameter.
struct DenseSpan {
  const DenseRule* rule;
  float* weights;
  const float* gradients;
  float* accumulators;
  int64_t size;
  float scale;   // of r: -lr sigma
  float factor;  // sigma
};

// Of one parameter, before the learning rate. Threads raise the numbers together.
struct DenseExtent {
  float ratio;        // largest |r| / allowed; any number below 1 / lr if no coordinate is near its bound
  float direction;    // largest |r|
  float accumulator;  // infinite if a gradient or its square is not finite, else 0
};

constexpr int64_t kDenseSpan = 16384;  // elements of a task

}  // namespace dlrm_mtl
