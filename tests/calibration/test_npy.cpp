// .npy files: what we write has the form that NumPy documents, and of what others wrote every part is checked.

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <string>

#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "test_folder.h"

namespace hcsmoe {
namespace {

std::string npy(const std::string& header, const std::string& values, int version = 1) {
  std::string file = "\x93NUMPY";
  file += static_cast<char>(version);
  file += '\0';
  file += static_cast<char>(header.size() & 0xFF);
  file += static_cast<char>(header.size() >> 8);
  if (version > 1) file += std::string(2, '\0');
  return file + header + values;
}

std::string error_of(const std::filesystem::path& file) {
  try {
    read_npy(file);
  } catch (const UserError& error) {
    return error.what();
  }
  return "no UserError";
}

TEST(Npy, WhatIsWrittenIsRead) {
  const TestFolder folder;
  for (const at::ScalarType type : {at::kInt, at::kLong, at::kFloat, at::kDouble}) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, {0}, {12}, {3, 4}, {2, 3, 2}, {5, 0}}) {
      int64_t count = 1;
      for (const int64_t size : shape) count *= size;
      const at::Tensor values = at::arange(count, at::TensorOptions(type)).sub(1).reshape(shape);
      write_npy(folder.path() / "a.npy", values);
      const at::Tensor again = read_npy(folder.path() / "a.npy");
      EXPECT_EQ(again.scalar_type(), type);
      EXPECT_EQ(again.sizes().vec(), shape);
      EXPECT_TRUE(again.equal(values));
      EXPECT_EQ((read_file(folder.path() / "a.npy", 1 << 20).size() - count * values.element_size()) % 64, 0u);
    }
  }
}

TEST(Npy, WrittenBytesAreNumPys) {
  const TestFolder folder;
  write_npy(folder.path() / "a.npy", at::arange(2, at::kInt).add(258).t());
  const std::string file = read_file(folder.path() / "a.npy", 1000);
  EXPECT_EQ(file.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_TRUE(std::string_view(file).substr(10).starts_with("{'descr': '<i4', 'fortran_order': False, 'shape': (2, ), }  ")) << file;
  EXPECT_EQ(file.substr(127), std::string("\n\x02\x01\x00\x00\x03\x01\x00\x00", 9));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "a.npy.tmp"));
}

TEST(Npy, VersionsAndHeadersOfOthers) {
  const TestFolder folder;
  const std::string two(8, '\1');
  for (const int version : {1, 2, 3}) {
    for (const std::string header :
         {"{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }\n", "{\"shape\":(2,),\"fortran_order\":False,\"descr\":\"<i4\"}",
          "{ 'fortran_order' : True , 'shape' : ( 2 , ) , 'descr' : '<i4' }  \n"}) {
      const at::Tensor values = read_npy(folder.write("a.npy", npy(header, two, version)));
      EXPECT_EQ(values.sizes().vec(), std::vector<int64_t>{2});
      EXPECT_EQ(values[1].item<int32_t>(), 0x01010101);
    }
  }
}

TEST(Npy, Refusals) {
  const TestFolder folder;
  const auto error = [&](const std::string& bytes) { return error_of(folder.write("a.npy", bytes)); };
  const std::string two(8, '\1');
  const auto header = [](const std::string& descr, const std::string& order, const std::string& shape) {
    return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  };
  EXPECT_NE(error(npy(header("<u2", "False", "(4,)"), two)).find("<u2"), std::string::npos);
  EXPECT_NE(error(npy(header(">i4", "False", "(2,)"), two)).find(">i4"), std::string::npos);
  EXPECT_NE(error(npy(header("|O", "False", "(2,)"), two)).find("|O"), std::string::npos);
  EXPECT_NE(error(npy(header("<i4", "True", "(1, 2)"), two)).find("Fortran"), std::string::npos);
  EXPECT_NE(error(npy(header("<i4", "False", "(2,)"), two, 4)).find("version 4"), std::string::npos);
  for (const std::string shape :
       {"(3,)", "(1,)", "(2, 2)", "(9223372036854775807, 2)", "(4611686018427387904, 4)", "(99999999999999999999,)", "()"}) {
    EXPECT_NE(error(npy(header("<i4", "False", shape), two)), "no UserError") << shape;
  }
  EXPECT_EQ(error(npy(header("<i4", "False", "(0, 4)"), "")), "no UserError");
  for (const std::string shape : {"(0, 4611686018427387904, 4611686018427387904)", "(4611686018427387904, 4, 0)"}) {
    EXPECT_NE(error(npy(header("<i4", "False", shape), "")), "no UserError") << shape;
  }
  std::string many = "(";
  for (int i = 0; i < 33; ++i) many += "1, ";
  EXPECT_NE(error(npy(header("<i4", "False", many + ")"), std::string(4, '\1'))).find("33 dimensions"), std::string::npos);
  for (const std::string text :
       {"", "{", "{}", "{'descr': '<i4'}", "{'descr': '<i4', 'descr': '<i4', 'shape': (2,)}",
        "{'descr': '<i4', 'fortran_order': 0, 'shape': (2,)}", "{'descr': '<i4', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (2,)} x", "{'descr': '<i4, 'fortran_order': False, 'shape': (2,)}",
        "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2,)}"}) {
    EXPECT_NE(error(npy(text, two)), "no UserError") << text;
  }
  EXPECT_NE(error_of(folder.path() / "none.npy"), "no UserError");
}

TEST(Npy, CutAndChangedFiles) {
  const TestFolder folder;
  write_npy(folder.path() / "whole.npy", at::arange(6, at::kInt).reshape({2, 3}));
  const std::string whole = read_file(folder.path() / "whole.npy", 1000);
  size_t refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_NE(error_of(folder.write("a.npy", whole.substr(0, i))), "no UserError") << i;
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ (1 << i % 8));
    refused += error_of(folder.write("a.npy", changed)) != "no UserError";
  }
  EXPECT_GT(refused, 50u);
}

TEST(Fingerprint, OfIdsAndShape) {
  const at::Tensor ids = at::arange(6, at::kInt);
  EXPECT_EQ(ids_fingerprint(ids).size(), 32u);
  EXPECT_EQ(ids_fingerprint(ids), ids_fingerprint(ids.clone()));
  EXPECT_NE(ids_fingerprint(ids.reshape({2, 3})), ids_fingerprint(ids.reshape({3, 2})));
  EXPECT_NE(ids_fingerprint(ids), ids_fingerprint(ids.add(1)));
  EXPECT_EQ(ids_fingerprint(ids.reshape({2, 3}).t()), ids_fingerprint(ids.reshape({2, 3}).t().contiguous()));
}

}  // namespace
}  // namespace hcsmoe
