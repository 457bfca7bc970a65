"""What everybody must be able to read on a page, checked in the browser without a further package."""

from tests.helpers.browser import Browser

#: WCAG 2.1 AA: least contrast of text, and of large text (from 24 px, or from 18.66 px if it is bold).
CHECK = """(() => {
  const found = [];
  const report = (rule, node) => found.push(rule + ": " + node.outerHTML.slice(0, 150));
  const parse = text => text.match(/[0-9.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
  const behind = node => {
    if (!node) return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
    const colour = parse(getComputedStyle(node).backgroundColor);
    return colour[3] === 0 ? behind(node.parentElement) : over(colour, behind(node.parentElement));
  };
  const light = colour => colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  for (const node of document.body.querySelectorAll("*")) {
    const text = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!text || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), ground = behind(node), size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (contrast(light(over(parse(style.color), ground)), light(ground)) < least) report("contrast", node);
  }
  document.querySelectorAll("img:not([alt]), img[alt='']").forEach(node => report("image without a text", node));
  document.querySelectorAll("table:not(:has(th))").forEach(node => report("table without a head", node));
  document.querySelectorAll("a:not([href]), a:empty").forEach(node => report("link", node));
  for (const node of document.querySelectorAll("div, pre")) {
    const scrolls = node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX === "auto";
    if (scrolls && (node.tabIndex < 0 || !node.ariaLabel)) report("scrolls, but not with the keyboard", node);
  }
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map(node => Number(node.tagName[1]));
  if (levels[0] !== 1 || levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1)) found.push("headings: " + levels);
  if (!document.documentElement.lang) found.push("no language");
  if (!document.title) found.push("no title");
  if (document.querySelectorAll("main").length !== 1) found.push("not one main part");
  return found;
})()"""


def barriers(browser: Browser) -> list[str]:
    """What is hard to read, or out of reach without a mouse, on the page that is open; each with its element."""
    return browser.run(CHECK)
