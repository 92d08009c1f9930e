// Makes the script and the style of report.html, and puts them where the Python package takes them from.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build, transform } from "esbuild";

const here = new URL(".", import.meta.url).pathname;
const out = `${here}../loadgen/report/page`;

// The same sum is made by tests/report/test_page.py, which so finds a script that is older than its source.
const sum = createHash("sha256");
for (const name of readdirSync(`${here}src`).sort()) {
  sum.update(`${name}\0`).update(readFileSync(`${here}src/${name}`)).update("\0");
}

const result = await build({
  entryPoints: [`${here}src/page.js`],
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome100", "firefox113", "safari16.4"],
  charset: "ascii",
  legalComments: "none",
  write: false,
});
mkdirSync(out, { recursive: true });
const script = result.outputFiles[0].text.replaceAll("</script", "<\\/script");
writeFileSync(`${out}/page.js`, `/* sources ${sum.digest("hex")}; licences: THIRD_PARTY.txt */\n${script}`);
const style = await transform(readFileSync(`${here}src/page.css`, "utf8"), { loader: "css", minify: true });
writeFileSync(`${out}/page.css`, style.code);

const part = (name, files) => {
  const version = JSON.parse(readFileSync(`${here}node_modules/${name}/package.json`)).version;
  const texts = files.map((file) => readFileSync(`${here}node_modules/${name}/${file}`, "utf8").trim());
  return `${name} ${version}\n${"=".repeat(72)}\n${texts.join("\n\n")}\n`;
};
writeFileSync(
  `${out}/THIRD_PARTY.txt`,
  "Software that page.js contains, and its licences.\n\n" +
    [part("echarts", ["NOTICE", "LICENSE"]), part("zrender", ["LICENSE"]), part("tslib", ["LICENSE.txt"])].join("\n\n"),
);
