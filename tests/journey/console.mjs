// A browser with somebody at the console in it; what it says of errors, sizes and accessibility is gathered in `found`.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

export const asked = JSON.parse(process.argv[2]);
export const found = { errors: [], foreign: [], wide: [], violations: [] };
const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

export const context = await chromium.launchPersistentContext(asked.profile, {
  executablePath: asked.browser,
  headless: true,
  viewport: { width: 1280, height: 900 },
  colorScheme: "light",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
context.setDefaultTimeout(15000);
export const page = context.pages()[0] ?? (await context.newPage());
page.on("console", (message) => { if (message.type() === "error") found.errors.push(message.text()); });
page.on("pageerror", (error) => found.errors.push(String(error)));
page.on("request", (request) => { if (!request.url().startsWith(asked.url)) found.foreign.push(request.url()); });

export async function signIn(token) {
  await page.goto(`${asked.url}/sign-in`);
  await page.fill("#token", token);
  await page.keyboard.press("Enter");
  await page.waitForURL((url) => url.pathname !== "/sign-in");
}

export async function signOut() {
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.click("button:text-is('Sign out')");
  await page.waitForURL("**/sign-in**");
}

// Each page at some widths, light and dark: nothing is wider than the screen, and nothing keeps a person out (axe-core).
export async function looked(paths, sizes, open = (path) => page.goto(asked.url + path)) {
  for (const path of paths) {
    await page.setViewportSize({ width: 1440, height: 900 });
    await open(path);
    await page.evaluate(AXE);
    for (const [width, theme] of sizes) {
      await page.setViewportSize({ width, height: 740 });
      await page.evaluate((name) => { document.documentElement.dataset.theme = name; document.dispatchEvent(new Event("theme")); }, theme);
      const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (wider > 0) found.wide.push(`${path}: ${wider} px of ${width}`);
      const { violations } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
      for (const each of violations) found.violations.push(`${path} ${width} ${theme}: ${each.id} ${each.nodes[0].target} ${each.nodes[0].failureSummary}`);
    }
  }
}

export async function close() {
  console.log(JSON.stringify(found));
  await context.close();
}
