// Opens a timeline with the viewer that the Trace Event Format was made for (catapult's, as PyTorch's profiler ships
// it), in a headless Chromium, and prints what it found.
//
//   npm install --prefix DIR playwright-core webcomponents.js@0.7.24
//   pip download --no-deps torch_tb_profiler==0.4.3        # torch_tb_profiler/static/trace_viewer_full.html
//   NODE_PATH=DIR/node_modules CHROMIUM=/usr/bin/chromium node tests/check_trace.mjs VIEWER.html trace.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.NODE_PATH}/`);
const { chromium } = require("playwright-core");
const read = (path) => readFileSync(path, "utf8");
const [viewer, trace] = process.argv.slice(2).map(read);
// The viewer is of the time before browsers had what it needs of web components.
const components = read(require.resolve("webcomponents.js/webcomponents.min.js"));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
try {
  const page = await browser.newPage();
  await page.setContent(viewer.replace("<head", `<head><script>${components}</script></head><head`));
  const found = await page.evaluate((trace) => {
    const model = new tr.Model();
    new tr.importer.Import(model, new tr.importer.ImportOptions()).importTraces([trace]);
    const processes = model.getAllProcesses();
    const threads = processes.flatMap((process) => Object.values(process.threads));
    const counters = processes.flatMap((process) => Object.values(process.counters));
    return {
      warnings: model.importWarnings.map((warning) => warning.message),
      processes: processes.map((process) => process.userFriendlyName),
      threads: threads.length,
      // Slices that overlap or do not nest are not in the outermost row.
      slices: threads.map((thread) => thread.sliceGroup.topLevelSlices.length).reduce((a, b) => a + b, 0),
      arrows: model.flowEvents.length,
      counters: counters.length,
      end_us: 1000 * model.bounds.max,
    };
  }, trace);
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
}
