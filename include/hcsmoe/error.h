#pragma once
// Errors: thrown anywhere, caught once, in main. A UserError is one that the user can mend (exit code 2): a wrong key, a missing file,
// a broken checkpoint, a full disk. A run that was asked to stop ends with EX_TEMPFAIL of sysexits.h (exit code 75): started again, it goes
// on. Every other error is a failure (exit code 1).

#include <stdexcept>
#include <string>

namespace hcsmoe {

enum class ExitCode : int { success = 0, failure = 1, user = 2, interrupted = 75 };

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(what) {}
  virtual ExitCode exit_code() const noexcept { return ExitCode::failure; }
  /// The message of an error that all ranks throw together (see Ranks::on_root): only rank 0 prints it.
  virtual bool collective() const noexcept { return false; }
};

/// what: what is wrong, and where (file, line, key, tensor). hint: what to do about it; may be empty.
class UserError : public Error {
 public:
  explicit UserError(const std::string& what, const std::string& hint = "") : Error(hint.empty() ? what : what + "\n  hint: " + hint) {}
  ExitCode exit_code() const noexcept override { return ExitCode::user; }
};

/// The error of one rank, thrown on all ranks after they agreed that it happened.
class CollectiveError : public Error {
 public:
  CollectiveError(const std::string& what, ExitCode code) : Error(what), code_(code) {}
  ExitCode exit_code() const noexcept override { return code_; }
  bool collective() const noexcept override { return true; }

 private:
  ExitCode code_;
};

}  // namespace hcsmoe
