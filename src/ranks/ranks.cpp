#include "hcsmoe/ranks.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <thread>

namespace hcsmoe {
namespace {

// MPI counts are int. Pieces this large cost nothing against one call, and no count can overflow.
constexpr size_t piece_values = size_t{1} << 22;
constexpr size_t piece_bytes = size_t{1} << 25;
constexpr int gather_tag = 1;

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  throw Error(std::string(call) + " failed: " + (length > 0 ? std::string(text, static_cast<size_t>(length)) : "unknown MPI error"));
}

/// Calls body(begin, count) for consecutive pieces of [0, size).
template <class Body>
void in_pieces(size_t size, size_t piece, const Body& body) {
  for (size_t begin = 0; begin < size; begin += piece) body(begin, static_cast<int>(std::min(piece, size - begin)));
}

/// What a piece of work threw, if anything.
struct Failure {
  bool failed = false;
  bool already_shared = false;  // a CollectiveError: every rank has it, and its text says whose it is
  std::string message;
  ExitCode code = ExitCode::failure;
};

Failure attempt(const std::function<void()>& work) {
  try {
    work();
    return {};
  } catch (const Error& error) {
    return {true, error.collective(), error.what(), error.exit_code()};
  } catch (const std::bad_alloc&) {
    return {true, false, "out of memory", ExitCode::failure};
  } catch (const std::exception& error) {
    return {true, false, error.what(), ExitCode::failure};
  } catch (...) {
    return {true, false, "unknown exception", ExitCode::failure};
  }
}

}  // namespace

Ranks::Ranks(MPI_Comm parent) {
  check(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  MPI_Comm node = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  check(MPI_Comm_rank(node, &local_rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(node, &local_size_), "MPI_Comm_size");
  const int64_t process = getpid();
  local_processes_.resize(static_cast<size_t>(local_size_));
  check(MPI_Allgather(&process, 1, MPI_INT64_T, local_processes_.data(), 1, MPI_INT64_T, node), "MPI_Allgather");
  check(MPI_Comm_free(&node), "MPI_Comm_free");
}

Ranks::~Ranks() {
  int finalized = 0;
  if (MPI_Finalized(&finalized) == MPI_SUCCESS && !finalized) MPI_Comm_free(&comm_);
}

void Ranks::arrive() const {
  const Span span(trace_, Activity::reducing, "wait for the other ranks");
  constexpr int spins = 200;
  constexpr std::chrono::microseconds shortest(20), longest(1000);
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
  const auto start = std::chrono::steady_clock::now();
  auto pause = shortest;
  for (int polls = 0;; ++polls) {
    int done = 0;
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return;
    if (polls < spins) {
      std::this_thread::yield();
      continue;
    }
    if (std::chrono::steady_clock::now() - start > wait_limit_) {
      throw Error("rank " + std::to_string(rank_) + " has waited " + std::to_string(wait_limit_.count() / 1000) +
                  " s for the other ranks: one hangs, or its host has vanished (device.wait_limit)");
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(longest, pause + pause / 8);
  }
}

void Ranks::all_reduce_sum(std::span<int64_t> values) const {
  if (size_ == 1) return;
  const Span span(trace_, Activity::reducing, "sum over ranks");
  arrive();
  in_pieces(values.size(), piece_values, [&](size_t begin, int count) {
    check(MPI_Allreduce(MPI_IN_PLACE, values.data() + begin, count, MPI_INT64_T, MPI_SUM, comm_), "MPI_Allreduce");
  });
}

void Ranks::reduce_sum(std::span<int64_t> values, int root) const {
  if (size_ == 1) return;
  const Span span(trace_, Activity::reducing, "sum over ranks");
  arrive();
  in_pieces(values.size(), piece_values, [&](size_t begin, int count) {
    int64_t* piece = values.data() + begin;
    check(MPI_Reduce(rank_ == root ? MPI_IN_PLACE : piece, rank_ == root ? piece : nullptr, count, MPI_INT64_T, MPI_SUM, root, comm_),
          "MPI_Reduce");
  });
}

int64_t Ranks::all_reduce_max(int64_t value) const {
  if (size_ == 1) return value;
  arrive();
  int64_t most = value;
  check(MPI_Allreduce(&value, &most, 1, MPI_INT64_T, MPI_MAX, comm_), "MPI_Allreduce");
  return most;
}

void Ranks::broadcast(std::string& bytes, int root) const {
  if (size_ == 1) return;
  const Span span(trace_, Activity::reducing, "broadcast");
  arrive();
  uint64_t length = bytes.size();
  check(MPI_Bcast(&length, 1, MPI_UINT64_T, root, comm_), "MPI_Bcast");
  bytes.resize(length);
  broadcast_bytes(std::as_writable_bytes(std::span(bytes)), root);
}

void Ranks::broadcast_bytes(std::span<std::byte> bytes, int root) const {
  in_pieces(bytes.size(), piece_bytes,
            [&](size_t begin, int count) { check(MPI_Bcast(bytes.data() + begin, count, MPI_BYTE, root, comm_), "MPI_Bcast"); });
}

std::vector<std::string> Ranks::gather(const std::string& bytes, int root) const {
  if (size_ == 1) return {bytes};
  const Span span(trace_, Activity::reducing, "gather");
  arrive();
  const uint64_t length = bytes.size();
  std::vector<uint64_t> lengths(rank_ == root ? static_cast<size_t>(size_) : 0);
  check(MPI_Gather(&length, 1, MPI_UINT64_T, lengths.data(), 1, MPI_UINT64_T, root, comm_), "MPI_Gather");
  // Point to point, straight into each rank's string: MPI_Gatherv's int offsets would bound the sum of all.
  if (rank_ != root) {
    in_pieces(bytes.size(), piece_bytes, [&](size_t begin, int count) {
      check(MPI_Send(bytes.data() + begin, count, MPI_BYTE, root, gather_tag, comm_), "MPI_Send");
    });
    return {};
  }
  std::vector<std::string> all(static_cast<size_t>(size_));
  for (int from = 0; from < size_; ++from) {
    std::string& received = all[static_cast<size_t>(from)];
    if (from == root) {
      received = bytes;
      continue;
    }
    received.resize(lengths[static_cast<size_t>(from)]);
    in_pieces(received.size(), piece_bytes, [&](size_t begin, int count) {
      check(MPI_Recv(received.data() + begin, count, MPI_BYTE, from, gather_tag, comm_, MPI_STATUS_IGNORE), "MPI_Recv");
    });
  }
  return all;
}

void Ranks::barrier() const {
  if (size_ > 1) arrive();
}

void Ranks::on_root(const std::function<void()>& work) const {
  Failure failure;
  if (is_root()) failure = attempt(work);
  int64_t failed = failure.failed;
  if (size_ > 1) {
    arrive();
    check(MPI_Bcast(&failed, 1, MPI_INT64_T, 0, comm_), "MPI_Bcast");
  }
  if (failed) throw_together(0, failure.message, failure.code);
}

void Ranks::on_all(const std::function<void()>& work) const {
  Failure failure = attempt(work);
  const int64_t lowest = size_ - all_reduce_max(failure.failed ? size_ - rank_ : 0);  // the lowest rank that failed, or size
  if (lowest == size_) return;
  if (rank_ > 0 && !failure.already_shared) failure.message = "rank " + std::to_string(rank_) + ": " + failure.message;
  throw_together(static_cast<int>(lowest), failure.message, failure.code);
}

void Ranks::throw_together(int from, std::string message, ExitCode code) const {
  std::string exit_code = std::to_string(static_cast<int>(code));
  broadcast(message, from);
  broadcast(exit_code, from);
  throw CollectiveError(message, static_cast<ExitCode>(std::stoi(exit_code)));
}

}  // namespace hcsmoe
