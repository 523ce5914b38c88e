"""What a scrape of /metrics costs: python3 scrape_cost.py URL [COUNT]. Prints the
server's CPU time for each, from its own process_cpu_seconds_total, and the time to
the answer. The server should be idle."""

import http.client
import re
import statistics
import sys
import time
import urllib.parse


def main():
    url = urllib.parse.urlparse(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    connection = http.client.HTTPConnection(url.hostname, url.port)

    def scrape():
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()

    def cpu_seconds(text):
        return float(re.search(r"^process_cpu_seconds_total (\S+)", text, re.M).group(1))

    text = scrape()
    before = cpu_seconds(text)
    times = []
    for _ in range(count):
        start = time.monotonic()
        text = scrape()
        times.append(time.monotonic() - start)
    cpu = (cpu_seconds(text) - before) / count
    print(f"{len(text)} bytes, {cpu * 1e6:.0f} us of CPU, {cpu * 20:.4f} core at 20 per second")
    print(f"answered in {statistics.median(times) * 1e6:.0f} us (median)")


if __name__ == "__main__":
    main()
