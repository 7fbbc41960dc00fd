// A worker of a numba-adam parameter server: create or open a model, pull its parameters, push gradients.
//
// docs/wire.md explains each step. The environment says whether there is TLS, and the access token (docs/remote.md).
// All arrays are float64. A worker is for one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "numba_adam/ps/v1/error.pb.h"
#include "numba_adam/ps/v1/parameter_service.grpc.pb.h"

namespace ps = numba_adam::ps::v1;

// The arrays of a model, by name.
using Arrays = std::map<std::string, std::vector<double>>;

// A call that failed for good, or until its deadline.
struct CallError : std::runtime_error {
  CallError(const grpc::Status& status, ps::ErrorDetail detail)
      : std::runtime_error(status.error_message()), code(status.error_code()), detail(std::move(detail)) {}

  grpc::StatusCode code;
  ps::ErrorDetail detail;  // reason REASON_UNSPECIFIED: the error is gRPC's own
};

class Worker {
 public:
  // `on_rewind` is called with the restored version when the server went back to a snapshot. One live process at a time
  // may use `worker_id`.
  Worker(const std::string& address, ps::ModelSpec spec, std::string worker_id, std::chrono::seconds timeout,
         std::function<void(std::uint64_t)> on_rewind);

  // Creates the model with these initial values, or opens it if it exists.
  void Create(const Arrays& values);

  // Returns all parameters, of one version.
  Arrays Pull();

  // Pushes gradients. Without a value: the server went back; pull and go on.
  std::optional<ps::PushAck> Push(const Arrays& gradients);

  // The state of the parameters pulled last.
  const ps::StatePoint& state() const { return state_; }

 private:
  struct Session {
    std::string state_id;
    std::uint64_t epoch = 0;
    std::uint64_t sequence = 0;  // of the next push
    bool is_open = false;
  };

  void OpenSession();
  void Notice(const ps::StatePoint& state);
  std::string BytesOf(const Arrays& arrays) const;

  // Repeats an attempt until it succeeds, fails for good, or the time is over.
  void Retry(const std::function<grpc::Status(grpc::ClientContext*)>& attempt);

  // Returns whether there is another token than before, and takes it.
  bool HasNewToken();

  // Sends a header, chunks and a trailer.
  template <class Request, class Response, class Header>
  Response Send(std::unique_ptr<grpc::ClientWriter<Request>> (ps::ParameterService::Stub::*method)(
                    grpc::ClientContext*, Response*),
                Header header, const std::string& payload);

  std::unique_ptr<ps::ParameterService::Stub> stub_;
  std::string address_;
  std::string token_;  // empty: none
  ps::ModelSpec spec_;
  std::string worker_id_;
  std::chrono::seconds timeout_;
  std::function<void(std::uint64_t)> on_rewind_;
  ps::StatePoint state_;
  Session session_;
};
