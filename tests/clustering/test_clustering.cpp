// Examples worked by hand, and misuse. Agreement with SciPy is test_against_scipy.py's.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "hcsmoe/clustering.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

using Partition = std::vector<std::vector<int64_t>>;

TEST(Distances, AreInTheOrderOfPairs) {
  const std::vector<double> points = {0, 0, 3, 4, 0, 1};
  EXPECT_EQ(pairwise_distances(points, 3, 2, Metric::euclidean), (std::vector<double>{5, 1, std::sqrt(18.0)}));
}

TEST(Distances, OfOneExpertAreNone) { EXPECT_TRUE(pairwise_distances(std::vector<double>{1, 2}, 1, 2, Metric::cosine).empty()); }

TEST(Distances, RefuseWhatIsNotFinite) {
  std::vector<double> features(12, 1.0);
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    features[7] = bad;
    for (const Metric metric : {Metric::euclidean, Metric::cosine}) {
      try {
        pairwise_distances(features, 3, 4, metric);
        FAIL() << "accepted " << bad;
      } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "feature 3 of expert 1 is not finite");
      }
    }
  }
}

TEST(Distances, RefuseAWrongShape) {
  EXPECT_THROW(pairwise_distances(std::vector<double>(5), 2, 3, Metric::euclidean), Error);
  EXPECT_THROW(pairwise_distances({}, 0, 3, Metric::euclidean), Error);
}

// Every count of rows and columns around the kernel's tiles and panels, with integers, for which any order of summation is exact.
TEST(Distances, AreExactForIntegersOfEveryShape) {
  std::mt19937 random(1);
  for (const int64_t rows : {2, 3, 4, 5, 7, 8, 9, 13}) {
    for (const int64_t columns : {1, 2, 7, 8, 9, 255, 256, 257, 264, 511, 513}) {
      std::vector<double> x(static_cast<size_t>(rows * columns));
      for (double& value : x) value = static_cast<double>(random() % 2001) - 1000;
      const auto distances = pairwise_distances(x, rows, columns, Metric::euclidean);
      auto next = distances.begin();
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = i + 1; j < rows; j++) {
          double sum = 0;
          for (int64_t c = 0; c < columns; c++)
            sum += (x[i * columns + c] - x[j * columns + c]) * (x[i * columns + c] - x[j * columns + c]);
          ASSERT_EQ(*next++, std::sqrt(sum)) << rows << " x " << columns;
        }
      }
      ASSERT_EQ(next, distances.end());
    }
  }
}

// Points 0, 1, 4 and 6 on a line.
TEST(Linkage, HandWorkedExample) {
  const std::vector<double> condensed = {1, 4, 6, 3, 5, 2};
  const auto tree = [&](Linkage linkage) { return linkage_tree(condensed, 4, linkage); };
  EXPECT_EQ(tree(Linkage::single), (Tree{{0, 1, 1, 2}, {2, 3, 2, 2}, {4, 5, 3, 4}}));
  EXPECT_EQ(tree(Linkage::complete), (Tree{{0, 1, 1, 2}, {2, 3, 2, 2}, {4, 5, 6, 4}}));
  EXPECT_EQ(tree(Linkage::average), (Tree{{0, 1, 1, 2}, {2, 3, 2, 2}, {4, 5, 4.5, 4}}));
  const Tree ward = tree(Linkage::ward);
  EXPECT_NEAR(ward[2].height, std::sqrt(2 * 2 * 2 / 4.0) * 4.5, 1e-14);  // sqrt(2 n m / (n + m)) x distance of the means
}

TEST(Linkage, TiesBreakTowardsTheSmallerIndices) {
  const std::vector<double> equal(10, 1.0);  // 5 experts, all at distance 1
  for (const Linkage linkage : {Linkage::single, Linkage::complete, Linkage::average}) {
    EXPECT_EQ(linkage_tree(equal, 5, linkage), (Tree{{0, 1, 1, 2}, {2, 5, 1, 3}, {3, 6, 1, 4}, {4, 7, 1, 5}}));
  }
  // Points 0, 1, 2, 3 on a line: 0-1 comes before 1-2 and 2-3; then single linkage has 0-2 before 2-3, complete only 2-3 at distance 1.
  const std::vector<double> line = {1, 2, 3, 1, 2, 1};
  EXPECT_EQ(linkage_tree(line, 4, Linkage::single), (Tree{{0, 1, 1, 2}, {2, 4, 1, 3}, {3, 5, 1, 4}}));
  EXPECT_EQ(linkage_tree(line, 4, Linkage::complete), (Tree{{0, 1, 1, 2}, {2, 3, 1, 2}, {4, 5, 3, 4}}));
}

TEST(Linkage, RefusesWrongDistances) {
  EXPECT_THROW(linkage_tree(std::vector<double>{1, 2}, 3, Linkage::average), Error);
  EXPECT_THROW(linkage_tree({}, 0, Linkage::average), Error);
  for (const double bad : {std::nan(""), -1.0, std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(linkage_tree(std::vector<double>{bad}, 2, Linkage::average), Error);
  }
}

TEST(Cut, GivesEveryNumberOfClusters) {
  const Tree tree = {{0, 3, 1, 2}, {1, 2, 2, 2}, {4, 5, 3, 4}};
  EXPECT_EQ(cut_tree(tree, 4, 4), (Partition{{0}, {1}, {2}, {3}}));
  EXPECT_EQ(cut_tree(tree, 4, 3), (Partition{{0, 3}, {1}, {2}}));
  EXPECT_EQ(cut_tree(tree, 4, 2), (Partition{{0, 3}, {1, 2}}));
  EXPECT_EQ(cut_tree(tree, 4, 1), (Partition{{0, 1, 2, 3}}));
  EXPECT_EQ(cut_tree({}, 1, 1), (Partition{{0}}));
}

TEST(Cut, RefusesWhatCannotBe) {
  const Tree tree = {{0, 3, 1, 2}, {1, 2, 2, 2}, {4, 5, 3, 4}};
  EXPECT_THROW(cut_tree(tree, 4, 0), Error);
  EXPECT_THROW(cut_tree(tree, 4, 5), Error);
  EXPECT_THROW(cut_tree(tree, 5, 2), Error);
  EXPECT_THROW(cut_tree({{0, 3, 1, 2}, {0, 2, 2, 2}, {4, 5, 3, 4}}, 4, 1), Error);
  EXPECT_THROW(cut_tree({{0, 9, 1, 2}}, 2, 1), Error);
}

TEST(FuzzyCmeans, HandWorkedExample) {
  // One round from the centres 0 and 4, on 1: 1/1 against 1/9. Symmetric points keep symmetric centres.
  const std::vector<double> line = {0, 1, 3, 4};
  const auto memberships = fuzzy_cmeans(line, 4, 1, {0, 3}, Metric::euclidean);
  ASSERT_EQ(memberships.size(), 2u);
  std::vector<double> centres;
  for (const auto& of_cluster : memberships) {
    double sum = 0, weighted = 0;
    for (size_t r = 0; r < 4; r++) sum += of_cluster[r] * of_cluster[r], weighted += of_cluster[r] * of_cluster[r] * line[r];
    centres.push_back(weighted / sum);
  }
  EXPECT_NEAR(centres[0] + centres[1], 4, 1e-7);
  for (size_t r = 0; r < 4; r++) {
    EXPECT_NEAR(memberships[0][r] + memberships[1][r], 1, 1e-15);
    const double near = std::pow(line[r] - centres[0], -2), far = std::pow(line[r] - centres[1], -2);
    EXPECT_NEAR(memberships[0][r], near / (near + far), 1e-6);  // a fixed point of both rules
  }
}

TEST(FuzzyCmeans, RowsOnCentres) {
  // Two equal rows on two centres share both; the other has its own.
  const std::vector<double> rows = {5, 5, 8};
  EXPECT_EQ(fuzzy_cmeans(rows, 3, 1, {0, 1, 2}, Metric::euclidean),
            (std::vector<std::vector<double>>{{.5, .5, 0}, {.5, .5, 0}, {0, 0, 1}}));
  EXPECT_THROW(fuzzy_cmeans(rows, 3, 1, {}, Metric::euclidean), Error);
  EXPECT_THROW(fuzzy_cmeans(rows, 3, 1, {0, 1, 2, 0}, Metric::euclidean), Error);
  const std::vector<double> bad = {5, std::nan(""), 8};
  EXPECT_THROW(fuzzy_cmeans(bad, 3, 1, {0}, Metric::euclidean), Error);
}

}  // namespace
}  // namespace hcsmoe
