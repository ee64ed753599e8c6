// The texts, marks and edges of the page that are seen, and whose contrast to what is behind them is below WCAG's AA.
() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const paint = canvas.getContext("2d", { willReadFrequently: true });

  // The colours one over the other, as the browser mixes them.
  const mixed = (colors) => {
    for (const color of ["white", ...colors]) {
      paint.fillStyle = color;
      paint.fillRect(0, 0, 1, 1);
    }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = (element) => (element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : []);
  const luminance = (color) => {
    const [red, green, blue] = color.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (color, ground) => {
    const [low, high] = [luminance(mixed([...ground, color])), luminance(mixed(ground))].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  };
  const isSeen = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 1 && height > 1 && element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());

  const found = { checked: 0, weak: [] };
  const check = (element, what, color, ground, least) => {
    const ratio = contrast(color, ground);
    found.checked += 1;
    if (ratio < least) found.weak.push(`${what}: ${color} on ${ground.at(-1)} has ${ratio.toFixed(2)}, not ${least}`);
  };
  for (const element of document.querySelectorAll("body *")) {
    if (!isSeen(element)) continue;
    const style = getComputedStyle(element);
    if (hasText(element) || element.matches("input, textarea, select")) {
      const isLarge = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
      check(element, element.textContent.trim() || element.id, style.color, behind(element), isLarge ? 3 : 4.5);
    }
    if (element.matches("input, textarea, select")) check(element, `edge of ${element.id}`, style.borderTopColor, behind(element.parentElement), 3);
    if (element.matches(".mark")) {
      const color = element.closest("[data-state=failed]") ? style.backgroundColor : style.borderTopColor;
      check(element, `mark of ${element.parentElement.textContent}`, color, behind(element.parentElement), 3);
    }
  }
  return found;
}
