// Beside the download of each chart as SVG, one as PNG: 1,890 pixels wide, which is 16 cm at 300 dots an inch.
// All else on the page works without scripts; where they are off there is no such button.
"use strict";
const WIDTH = 1890;
for (const link of document.querySelectorAll('a[download$=".svg"]')) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "PNG";
  button.setAttribute("aria-label", link.getAttribute("aria-label").replace(/SVG$/, "PNG"));
  button.addEventListener("click", async () => {
    const picture = new Image();
    picture.src = link.href;
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.width = WIDTH;
    canvas.height = Math.round(WIDTH * picture.height / picture.width);
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const saved = document.createElement("a");
    saved.download = link.download.replace(/svg$/, "png");
    saved.href = canvas.toDataURL("image/png");
    saved.click();
  });
  link.after(" ", button);
}
