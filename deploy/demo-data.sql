-- Made-up companies and people for the demo and the tests: 600 companies, 5,000 people, and a few overrides.
--
-- Run inside a workspace's database by a superuser or the owner of the managed schemas. Everything follows from the
-- row's number (md5 of it, cut into slices), so two runs and two machines get the same rows; a second run adds nothing.
-- Names come from several languages and scripts on purpose: what breaks on non-ASCII text should break here first.

BEGIN;

WITH words AS (
    SELECT ARRAY['Acorn','Blaumeise','Cerro','Dahlström','Éclair','Fjord','Grünwald','Hōrin','Iztok','Jasmín','Kestrel',
                 'Løvenskiold','Międzymorze','Nørrebro','Ørsted','Pão','Quill','Řeka','Söder','Tōkai','Überlin','Víðir',
                 'Windmere','Ξένος','Юпитер','中山','大和','한강','نور','כרמל'] AS stem,
           ARRAY['Analytics','Logistics','Foods','Robotics','Textiles','Energy','Software','Biotech','Maritime','Finance',
                 'Media','Optics','Timber','Mobility','Insurance','Papier','Systèmes','Werke','Lab','Studios'] AS trade,
           ARRAY['Inc.','GmbH','S.A.','Ltd','AB','S.p.A.','K.K.','a.s.','Oy','LLC'] AS form,
           ARRAY['software','logistics','food','manufacturing','energy','biotech','finance','media','retail','telecom'] AS industry,
           ARRAY['Berlin','København','São Paulo','München','Kraków','Tōkyō','Reykjavík','Zürich','Montréal','Αθήνα',
                 'Санкт-Петербург','北京','서울','Austin','Lyon','Malmö','Nairobi','Bogotá','Istanbul','Dublin'] AS city,
           ARRAY['postgresql','kafka','react','kubernetes','snowflake','salesforce','sap','rust','go','airflow'] AS tech,
           ARRAY['b2b','b2c','series-a','series-b','public','family-owned','hiring','remote','export','nonprofit'] AS tag
), numbered AS (
    SELECT n, md5('company ' || n) AS h FROM generate_series(1, 600) AS n
), dice AS (
    SELECT n,
           ('x' || substr(h, 1, 7))::bit(28)::int AS a, ('x' || substr(h, 8, 7))::bit(28)::int AS b,
           ('x' || substr(h, 15, 7))::bit(28)::int AS c, ('x' || substr(h, 22, 7))::bit(28)::int AS d
      FROM numbered
)
INSERT INTO dl_cache.company_enrichments
       (company_id, domain, name, industry, employees, revenue, founded, hq, tech, tags, parent_company_id, updated_at)
SELECT 'co_' || lpad(n::text, 5, '0'),
       'company-' || lpad(n::text, 4, '0') || '.example',
       stem[1 + n % 30] || ' ' || trade[1 + (n / 30) % 20] || ' ' || form[1 + a % 10],
       CASE WHEN b % 20 = 0 THEN NULL ELSE industry[1 + b % 10] END,
       CASE WHEN c % 15 = 0 THEN NULL ELSE 3 + (c % 97) * (1 + d % 211) END,
       CASE WHEN d % 9 = 0 THEN NULL ELSE round((a % 90000000)::numeric / 7 + 10000, 2) END,
       CASE WHEN a % 12 = 0 THEN NULL ELSE date '1950-01-01' + b % 26500 END,
       city[1 + c % 20],
       jsonb_build_object('stack', jsonb_build_array(tech[1 + a % 10], tech[1 + b % 10]), 'cloud', d % 3 = 0),
       ARRAY[tag[1 + c % 10], tag[1 + d % 10]],
       CASE WHEN n > 50 AND d % 8 = 0 THEN 'co_' || lpad((1 + d % 50)::text, 5, '0') END,
       timestamptz '2025-01-01 00:00:00+00' + (a % 31536000) * interval '1 second'
  FROM dice, words
 ORDER BY n
    ON CONFLICT (company_id) DO NOTHING;

WITH words AS (
    SELECT ARRAY['Ada','Zoë','Søren','Mária','José','Łukasz','Anaïs','Jürgen','Chloé','Nuño','Åsa','Ömer','İpek','Siobhán',
                 'Đorđe','Þóra','Renée','Dvořák','Nguyễn','Olga','Ольга','Дмитрий','Γιώργος','Ελένη','伟','静','太郎','さくら',
                 '민준','서연','أحمد','فاطمة','דוד','רחל','अनन्या','Emma','Noah','Liam','Olivia','Mia'] AS given,
           ARRAY['Müller','O''Brien','Núñez','Sørensen','Kowalczyk','Dvořáková','Lindqvist','Yılmaz','García-López','Dubois',
                 'Björnsdóttir','van der Berg','D''Angelo','Szabó','Ionescu','Hämäläinen','Štefánik','Nguyễn','Иванова','Кузнецов',
                 'Παπαδόπουλος','王','李','田中','鈴木','김','박','الحسيني','כהן','शर्मा','Smith','Johnson','Okafor','Mbeki','Silva','Costa',
                 'Brown','Wilson','Larsen','Weiß'] AS family,
           ARRAY['Data Engineer','Head of Growth','CFO','Développeuse senior','Vertriebsleiterin','Product Manager','Account Executive',
                 'CTO','Analyst','Site Reliability Engineer','Research Scientist','Ingeniero de datos','Office Manager',
                 'VP Engineering','Designer','Leiter Einkauf'] AS title,
           ARRAY['Berlin, DE','København, DK','São Paulo, BR','Kraków, PL','Tōkyō, JP','Αθήνα, GR','Montréal, CA','Austin, US',
                 'Lyon, FR','Malmö, SE','Nairobi, KE','Bogotá, CO','İstanbul, TR','서울, KR','北京, CN'] AS place,
           ARRAY['sql','rust','python','négociation','kubernetes','sales','finance','ux','dbt','spark','español','日本語'] AS skill
), numbered AS (
    SELECT n, md5('person ' || n) AS h FROM generate_series(1, 5000) AS n
), dice AS (
    SELECT n,
           ('x' || substr(h, 1, 7))::bit(28)::int AS a, ('x' || substr(h, 8, 7))::bit(28)::int AS b,
           ('x' || substr(h, 15, 7))::bit(28)::int AS c, ('x' || substr(h, 22, 7))::bit(28)::int AS d
      FROM numbered
)
INSERT INTO dl_cache.person_enrichments
       (person_id, email, full_name, title, company_domain, location, skills, attrs, score, salary, active, opted_out, updated_at)
SELECT 'pe_' || lpad(n::text, 6, '0'),
       CASE WHEN d % 14 = 0 THEN NULL
            ELSE 'person' || n || '@company-' || lpad((1 + a % 600)::text, 4, '0') || '.example' END,
       given[1 + b % 40] || ' ' || family[1 + c % 40],
       CASE WHEN a % 17 = 0 THEN NULL ELSE title[1 + d % 16] END,
       'company-' || lpad((1 + a % 600)::text, 4, '0') || '.example',
       place[1 + b % 15],
       ARRAY(SELECT DISTINCT s FROM unnest(ARRAY[skill[1 + a % 12], skill[1 + b % 12], skill[1 + c % 12]]) AS s ORDER BY s),
       jsonb_build_object('seniority', 1 + c % 5, 'languages', 1 + d % 3, 'source', CASE WHEN a % 2 = 0 THEN 'crm' ELSE 'web' END),
       round((b % 100000)::numeric / 100, 3),
       CASE WHEN c % 6 = 0 THEN NULL ELSE int4range(30000 + c % 90000, 30000 + c % 90000 + 5000 + d % 20000) END,
       CASE WHEN d % 10 = 0 THEN NULL ELSE daterange(date '2012-01-01' + a % 4000, NULL) END,
       n % 250 = 0,
       timestamptz '2025-01-01 00:00:00+00' + (d % 31536000) * interval '1 second'
  FROM dice, words
 ORDER BY n
    ON CONFLICT (person_id) DO NOTHING;

-- Corrections: they win in dl_resolved, column by column (D10).
INSERT INTO dl_override.person_overrides (person_id, full_name, title, email, attrs, note, updated_by, updated_at)
SELECT 'pe_' || lpad(n::text, 6, '0'),
       CASE WHEN n % 2 = 0 THEN 'Zoë Weiß-Núñez (corrected)' END,
       CASE WHEN n % 3 = 0 THEN 'Chief Data Officer' END,
       CASE WHEN n % 5 = 0 THEN 'corrected' || n || '@people.example' END,
       jsonb_build_object('verified', true, 'source', 'override'),
       'checked by phone', 'demo', timestamptz '2026-01-01 00:00:00+00'
  FROM generate_series(7, 4900, 71) AS n
    ON CONFLICT (person_id) DO NOTHING;

INSERT INTO dl_override.company_overrides (company_id, name, industry, employees, attrs, note, updated_by, updated_at)
SELECT 'co_' || lpad(n::text, 5, '0'),
       CASE WHEN n % 2 = 1 THEN 'Übernommen & Søn A/S' END,
       CASE WHEN n % 3 = 0 THEN 'aerospace' END,
       1000 + n, '{"verified": true}', 'annual report', 'demo', timestamptz '2026-01-01 00:00:00+00'
  FROM generate_series(3, 590, 37) AS n
    ON CONFLICT (company_id) DO NOTHING;

INSERT INTO dl_meta.tenant_settings (key, value) VALUES ('demo', 'made-up data') ON CONFLICT (key) DO NOTHING;

COMMIT;

ANALYZE dl_cache.person_enrichments;
ANALYZE dl_cache.company_enrichments;
