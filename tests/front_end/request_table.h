// Requests from a file, and what is to be answered to each.
//
// A line is a JSON object: `group` and `name`; either `raw`, all bytes of the
// request, or `request` ("POST /v1/completions"), `fields` of its head, `body`,
// and `key`: false if the server's key is to be left out; `status`; `error`,
// the whole error object; `stream`: the answer is a stream that ends in good
// order; `choices`: so many. Bytes are pieces, strings of which each character
// is a byte, or [string, times].
#ifndef QUIRE_TESTS_FRONT_END_REQUEST_TABLE_H_
#define QUIRE_TESTS_FRONT_END_REQUEST_TABLE_H_

#include <string>
#include <vector>

#include "tests/front_end/figure.h"

namespace quire {

enum class RequestTable : char { kBad, kOdd };

// Asks `program` (the hash model's server, or quire itself) all of the table,
// `num_rounds` times; says on stderr which answers are others than they should
// be.
std::vector<Figure> RunRequestTable(RequestTable table, int num_rounds,
                                    const std::string& program);

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_REQUEST_TABLE_H_
