// Clusters the cases of a file, for test_against_scipy.py, which makes them and judges the answers.
//   cluster_cases CASES ANSWERS
// Little-endian, 8 bytes a value. A case:    rows, columns, metric, linkage, number of cuts, cuts [..], values [rows, columns]
//                                            (columns 0: the values are condensed distances)
//                             An answer:   condensed distances, tree [rows - 1, 4] as doubles, labels [cuts, rows]
#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "hcsmoe/clustering.h"

namespace {

template <typename T>
std::vector<T> read(std::istream& in, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  in.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  if (!in) throw std::runtime_error("the file of cases ends early");
  return values;
}

template <typename T>
void write(std::ostream& out, const std::vector<T>& values) {
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

void answer(std::istream& in, std::ostream& out) {
  const auto head = read<int64_t>(in, 5);
  const int64_t rows = head[0], columns = head[1];
  const auto cuts = read<int64_t>(in, head[4]);
  const auto values = read<double>(in, columns == 0 ? rows * (rows - 1) / 2 : rows * columns);
  const auto condensed = columns == 0 ? values : hcsmoe::pairwise_distances(values, rows, columns, static_cast<hcsmoe::Metric>(head[2]));
  const hcsmoe::Tree tree = hcsmoe::linkage_tree(condensed, rows, static_cast<hcsmoe::Linkage>(head[3]));
  write(out, condensed);
  for (const auto& merge : tree) {
    write<double>(out, {static_cast<double>(merge.a), static_cast<double>(merge.b), merge.height, static_cast<double>(merge.size)});
  }
  for (const int64_t clusters : cuts) {
    const auto partition = hcsmoe::cut_tree(tree, rows, clusters);
    std::vector<int64_t> labels(static_cast<size_t>(rows), -1);
    for (size_t k = 0; k < partition.size(); k++) {
      for (const int64_t member : partition[k]) labels[member] = static_cast<int64_t>(k);
    }
    write(out, labels);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: cluster_cases CASES ANSWERS\n";
    return 2;
  }
  try {
    std::ifstream in(argv[1], std::ios::binary);
    std::ofstream out(argv[2], std::ios::binary);
    const int64_t cases = read<int64_t>(in, 1)[0];
    for (int64_t i = 0; i < cases; i++) answer(in, out);
    out.close();
    return out && in.peek() == EOF ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
