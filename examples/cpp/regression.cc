// Fit a linear function to data, with the parameter server of numba-adam.
//
//   make -C examples/cpp
//   numba-adam serve --listen 127.0.0.1:50051 --data-dir checkpoints --snapshot-every-pushes 100
//   examples/cpp/build/regression 127.0.0.1:50051
//
// For a server with TLS and tokens, set NUMBA_ADAM_SERVER_CA (a file) and NUMBA_ADAM_TOKEN: see docs/remote.md.
//
// Kill the server with kill -9, even the process that supervises it, and start it again: no acknowledged push is lost.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>

#include <unistd.h>

#include "worker.h"

namespace {

constexpr int kInputs = 8;
constexpr int kBatch = 64;

const std::vector<double> kWeights = {3, -2, 1, 0.5, -0.5, 2, -1, 0};
constexpr double kOffset = 4;

ps::ModelSpec Spec() {
  ps::ModelSpec spec;
  spec.set_name("regression-cpp");
  spec.set_dtype(ps::DTYPE_FLOAT64);
  spec.set_durability(ps::DURABILITY_PROCESS);  // an acknowledged push survives kill -9 of the server
  auto* weights = spec.add_tensors();  // the order of the arrays is the order of their bytes
  weights->set_name("weights");
  weights->add_shape(kInputs);
  spec.add_tensors()->set_name("offset");  // no shape: one number
  spec.mutable_hyperparameters()->set_lr(0.02);
  return spec;
}

struct Step {
  double loss = 0;
  Arrays gradients{{"weights", std::vector<double>(kInputs)}, {"offset", {0.0}}};
};

// Returns the mean squared error on a random batch, and its gradient.
Step LossAndGradients(const Arrays& params, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Step step;
  for (int sample = 0; sample < kBatch; ++sample) {
    std::vector<double> x(kInputs);
    double error = params.at("offset")[0] - kOffset;
    for (int i = 0; i < kInputs; ++i) {
      x[i] = normal(random);
      error += (params.at("weights")[i] - kWeights[i]) * x[i];
    }
    step.loss += error * error / kBatch;
    for (int i = 0; i < kInputs; ++i) step.gradients["weights"][i] += 2 * error * x[i] / kBatch;
    step.gradients["offset"][0] += 2 * error / kBatch;
  }
  return step;
}

void Train(const std::string& address, std::uint64_t steps, std::chrono::seconds timeout) {
  Worker worker(address, Spec(), "cpp-" + std::to_string(getpid()), timeout, [](std::uint64_t version) {
    std::cout << "the server is back, at version " << version << std::endl;
  });
  std::mt19937 random{std::random_device{}()};
  worker.Create({{"weights", std::vector<double>(kInputs)}, {"offset", {0.0}}});
  Arrays params = worker.Pull();
  while (worker.state().version() < steps) {
    const Step step = LossAndGradients(params, random);
    const auto ack = worker.Push(step.gradients);
    if (ack && ack->version() % 10 == 0) {
      std::cout << "version " << ack->version() << ": loss " << step.loss << ", newest snapshot "
                << ack->state().snapshot_version() << std::endl;
    }
    params = worker.Pull();
  }
  double largest = std::abs(params["offset"][0] - kOffset);
  for (int i = 0; i < kInputs; ++i) largest = std::max(largest, std::abs(params["weights"][i] - kWeights[i]));
  std::cout << "version " << worker.state().version() << ": the largest error of a weight is " << largest << std::endl;
}

}  // namespace

int main(int count, char** words) {
  const std::string address = count > 1 ? words[1] : "127.0.0.1:50051";
  const std::uint64_t steps = count > 2 ? std::strtoull(words[2], nullptr, 10) : 2000;
  const std::chrono::seconds timeout(count > 3 ? std::atoi(words[3]) : 60);
  try {
    Train(address, steps, timeout);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
  }
}
