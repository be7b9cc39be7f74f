#pragma once
// The report's page as it is in page.html, page.css, charts.js, heat_map.js and page.js, which the build puts into the program.

namespace hcsmoe {

extern const char* const page_html;
extern const char* const page_css;
extern const char* const page_js;

}  // namespace hcsmoe
