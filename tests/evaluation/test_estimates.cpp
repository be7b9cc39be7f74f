#include <gtest/gtest.h>

#include "hcsmoe/evaluation.h"

namespace hcsmoe {
namespace {

TEST(EstimatesTest, RatioOfSums) {
  const Estimate found = ratio_of_sums({2, 3, 10}, {1, 2, 2});
  EXPECT_DOUBLE_EQ(found.value, 3);
  // Residuals -1, -3, 4: sqrt(3/2 * 26) / 5
  EXPECT_DOUBLE_EQ(found.error, std::sqrt(1.5 * 26) / 5);
  EXPECT_EQ(ratio_of_sums({4, 6, 2}, {2, 3, 1}).error, 0);
}

TEST(EstimatesTest, OneItemHasNoError) {
  EXPECT_EQ(ratio_of_sums({3}, {2}).value, 1.5);
  EXPECT_TRUE(std::isnan(ratio_of_sums({3}, {2}).error));
  EXPECT_TRUE(std::isnan(share_of_right(1, 1).error));
}

TEST(EstimatesTest, EqualDenominatorsGiveTheErrorOfAMean) {
  const std::vector<double> values = {1, 4, 4, 7};  // variance 6
  const Estimate found = ratio_of_sums(values, {1, 1, 1, 1});
  EXPECT_DOUBLE_EQ(found.value, 4);
  EXPECT_DOUBLE_EQ(found.error, std::sqrt(6.0 / 4));
}

TEST(EstimatesTest, Accuracy) {
  EXPECT_DOUBLE_EQ(share_of_right(3, 4).value, 0.75);
  EXPECT_DOUBLE_EQ(share_of_right(3, 4).error, 0.25);  // sqrt(0.75 * 0.25 / 3)
  EXPECT_EQ(share_of_right(5, 5).error, 0);
  const Estimate mean = mean_of({{0.5, 0.3}, {0.7, 0.4}});
  EXPECT_DOUBLE_EQ(mean.value, 0.6);
  EXPECT_DOUBLE_EQ(mean.error, 0.25);
  EXPECT_TRUE(std::isnan(mean_of({}).value));
}

}  // namespace
}  // namespace hcsmoe
