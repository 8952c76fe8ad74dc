"""The HTML of a page, for Jinja."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
<h1>{{ page.title }}</h1>
{% if page.subtitle %}
<p>{{ page.subtitle }}</p>
{% endif %}
{% if page.notes %}
<ul class="notes">
{% for note in page.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
{% if page.sections | length > 3 %}
<nav aria-label="Sections">
{% for section in page.sections %}
<a href="#s{{ loop.index }}">{{ section.title }}</a>
{% endfor %}
</nav>
{% endif %}
{% if page.legend %}
<div class="legend">
{% for colour, name in page.legend %}
<span><span class="swatch" style="background: {{ colour | theme }}"></span>{{ name }}</span>
{% endfor %}
</div>
{% endif %}
{% for section in page.sections %}
{% if section.folded %}
<details id="s{{ loop.index }}" class="target">
<summary><h2>{{ section.title }}</h2></summary>
{% else %}
<section id="s{{ loop.index }}" class="target">
<h2>{{ section.title }}</h2>
{% endif %}
{% if section.text %}
<p>{{ section.text }}</p>
{% endif %}
{% if section.tables %}
<div class="tables">
{% for table in section.tables %}
<div class="scroll"><table>
{% if table.caption %}
<caption>{{ table.caption }}</caption>
{% endif %}
<thead><tr>
{%- for column in table.columns -%}
<th{% if loop.index0 < table.text_columns %} class="text"{% endif %}>{{ column }}</th>
{%- endfor -%}
</tr></thead>
<tbody>
{% for row in table.cells() %}
<tr>
{%- for cell in row -%}
<td class="{% if loop.index0 < table.text_columns %}text{% endif %}{% if cell.bar is not none %} bar{% endif %}"
{%- if cell.bar is not none %} style="background-size: {{ '%.1f' | format(100 * cell.bar) }}% 70%"{% endif %}>
{%- if cell.colour %}<span class="swatch" style="background: {{ cell.colour | theme }}"></span>{% endif -%}
{%- if cell.strong %}<strong>{{ cell.text }}</strong>{% else %}{{ cell.text }}{% endif -%}
{%- if cell.note %}<small>{{ cell.note }}</small>{% endif -%}
</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
</div>
{% endif %}
{% if section.figures %}
<div class="grid">
{% for figure in section.figures %}
<div class="plot{% if figure.wide %} wide{% endif %}" role="img" aria-label="{{ figure.description }}">
{{ figure.svg | inline | safe }}</div>
{% endfor %}
</div>
{% endif %}
{% if section.folded %}
</details>
{% else %}
</section>
{% endif %}
{% endfor %}
{% if page.source %}
<footer>{{ page.source }}</footer>
{% endif %}
</body>
</html>
"""
