// Opens a report in a headless Chromium as people see it: on a phone and on a desk.
//
//   npm install --prefix DIR playwright-core
//   NODE_PATH=DIR/node_modules CHROMIUM=/usr/bin/chromium node tests/check_report.mjs report.html
//
// Fails at a message on the console, a request over the network, a plot that is not to be seen, a page
// wider than its window, or a table that does not sort.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.NODE_PATH ? `${process.env.NODE_PATH}/` : import.meta.url);
const { chromium } = require("playwright-core");
const file = pathToFileURL(process.argv[2]).href;

function check(holds, message) {
  if (!holds) throw new Error(message);
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
try {
  for (const [name, width, height] of [["phone", 375, 667], ["desk", 1440, 900]]) {
    const page = await browser.newPage({ viewport: { width, height } });
    const said = [];
    page.on("console", (message) => said.push(message.text()));
    page.on("pageerror", (error) => said.push(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith("file:") && !request.url().startsWith("data:")) said.push(request.url());
    });
    await page.goto(file);
    const plots = await page.locator("figure svg").all();
    check(plots.length > 0, "no plots");
    for (const plot of plots) {
      await plot.scrollIntoViewIfNeeded();
      const box = await plot.boundingBox();
      check(box && box.width > 200 && box.height > 100, `${name}: a plot is ${JSON.stringify(box)}`);
      check(box.x >= 0 && box.x + box.width <= width, `${name}: a plot is wider than the window`);
      check((await plot.locator("polyline, rect, circle").count()) > 3, `${name}: a plot is empty`);
    }
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    check(overflow <= 0, `${name}: the page is ${overflow} pixels wider than the window`);
    await page.evaluate(() => document.querySelectorAll("details").forEach((each) => (each.open = true)));
    const tables = await page.locator("table").all();
    check(tables.length > 0, "no tables");
    for (const table of tables) {
      const columns = await table.locator("thead th").count();
      for (let column = 0; column < columns; column += 1) {
        const head = table.locator("thead th").nth(column);
        for (const wanted of ["ascending", "descending"]) {
          await head.locator("button").dispatchEvent("click");
          check((await head.getAttribute("aria-sort")) === wanted, `${name}: column ${column} is not ${wanted}`);
          const values = await table.locator("tbody tr").evaluateAll(
            (rows, at) => rows.map((row) => row.cells[at].dataset.value).filter((value) => value !== undefined).map(Number),
            column,
          );
          const whole = values.length === (await table.locator("tbody tr").count());
          const sign = wanted === "ascending" ? 1 : -1;
          const sorted = values.every((value, index) => index === 0 || sign * (value - values[index - 1]) >= 0);
          check(!whole || sorted, `${name}: column ${column} does not sort: ${values}`);
        }
      }
    }
    check(said.length === 0, `${name}: ${said.join("; ")}`);
    console.log(`${name}: ${plots.length} plots, ${tables.length} tables`);
    await page.close();
  }
} finally {
  await browser.close();
}
